# Image of MLflow's and Prefect's servers: the group `stack` of pyproject.toml, pinned by requirements.lock.
FROM python:3.11-slim-bookworm

# /opt/uv is a tmpfs, so uv does not enter the image.
RUN --mount=type=cache,target=/root/.cache \
    --mount=type=secret,id=index \
    --mount=type=tmpfs,target=/opt/uv \
    --mount=type=bind,source=requirements.lock,target=/build/requirements.lock \
    --mount=type=bind,source=pyproject.toml,target=/build/pyproject.toml \
    cd /build \
 && index=$(cat /run/secrets/index 2>/dev/null || true) \
 && if [ -n "$index" ]; then export PIP_INDEX_URL="$index" UV_DEFAULT_INDEX="$index"; fi \
 && sed -n '/^uv==/,/# via/p' requirements.lock \
    | pip install --quiet --root-user-action=ignore --require-hashes --no-deps --target /opt/uv -r /dev/stdin \
 && /opt/uv/bin/uv pip install --quiet --system --link-mode=copy --compile-bytecode \
    --require-hashes --constraint requirements.lock --group stack

COPY --chmod=755 serving/stack/healthy serving/stack/secrets serving/stack/mlflow-server /usr/local/bin/
COPY --chmod=644 serving/stack/basic_auth.ini /etc/mlflow/

# A new volume takes over the owner of the folder on which it is mounted.
RUN useradd --uid 1034 --no-create-home --home-dir /tmp convoy && install -d -o convoy -g convoy /mlflow
USER convoy
ENV HOME=/tmp PYTHONUNBUFFERED=1 MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true PREFECT_SERVER_ANALYTICS_ENABLED=false
WORKDIR /tmp
ENTRYPOINT ["secrets"]
