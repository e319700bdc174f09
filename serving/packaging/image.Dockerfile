# Image of a packaged model, for every target. `convoy package --containerize` passes the arguments and the contexts.
# Files that change often are copied last, so that two versions of a model share the other layers.
ARG BASE

FROM $BASE AS packages
WORKDIR /build
# For `strip`; this stage is not part of the image.
RUN apt-get update -qq && apt-get install -qq --no-install-recommends binutils > /dev/null
COPY requirements.lock ./
RUN sed -n '/^uv==/,/# via/p' requirements.lock \
    | pip install --quiet --no-cache-dir --require-hashes --no-deps -r /dev/stdin
COPY --from=bento env/python/requirements.txt ./
# The image serves without BentoML, so BentoML and its dependencies are not installed.
# The secret names the machine's own package index, if any. A build argument would stay in the image's history.
RUN --mount=type=secret,id=index \
    if [ -s /run/secrets/index ]; then UV_DEFAULT_INDEX=$(cat /run/secrets/index); export UV_DEFAULT_INDEX; fi; \
    python -m venv --without-pip /opt/convoy \
    && sed -i '/^bentoml==/d' requirements.txt \
    && uv pip install --no-cache --python /opt/convoy/bin/python --require-hashes \
        --requirements requirements.txt --constraints requirements.lock
COPY slim.py ./
RUN python slim.py /opt/convoy

# The base image without package installers.
FROM $BASE AS bare
RUN echo 'convoy:x:1034:1034::/tmp:/usr/sbin/nologin' >> /etc/passwd \
    && echo 'convoy:x:1034:' >> /etc/group \
    && rm -rf /usr/local/lib/python3*/site-packages/* /usr/local/lib/python3*/ensurepip \
        /usr/local/bin/pip* /usr/local/bin/wheel /usr/local/bin/idle* /usr/local/include
COPY --from=packages /opt/convoy /opt/convoy
WORKDIR /app
# MALLOC in serving/packaging/local_endpoint.py gives the reasons.
ENV PATH=/opt/convoy/bin:$PATH \
    GLIBC_TUNABLES=glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONPYCACHEPREFIX=/opt/bytecode \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp
COPY --from=bento src ./

FROM bare AS rehearsal
COPY bytecode.py sbom.py /build/
RUN python /build/bytecode.py
ARG TITLE
RUN python /build/sbom.py "$TITLE" > /build/sbom.cdx.json

# `--target sbom --output` exports the bill of materials.
FROM scratch AS sbom
COPY --from=rehearsal /build/sbom.cdx.json /

FROM bare
COPY --from=rehearsal /opt/bytecode /opt/bytecode
COPY --from=rehearsal /build/sbom.cdx.json /opt/convoy/
COPY healthcheck.py /opt/convoy/
USER 1034:1034
EXPOSE 3000
# The check waits until the endpoint listens. From then on each failure counts: an endpoint that refuses its model is
# unhealthy within 20 seconds.
HEALTHCHECK --interval=5s --timeout=70s --start-period=1s --start-interval=500ms --retries=3 \
    CMD ["python", "-I", "-S", "/opt/convoy/healthcheck.py"]
CMD ["python", "-m", "serving.endpoint.server", "--host", "0.0.0.0", "--port", "3000"]
