# Image of the worker: this repository, and Convoy's dependencies, pinned by requirements.lock.
FROM python:3.11-slim-bookworm AS base

RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends git >/dev/null \
 && rm -rf /var/lib/apt/lists/*

# `worker` copies this code into the workspace, from which it runs.
FROM base AS code
RUN --mount=type=bind,target=/context sh /context/serving/stack/tracked.sh /context /convoy

FROM base

# PyPI's torch for x86-64 is a CUDA build, and its import loads most of CUDA's libraries even without a GPU. Triton and
# cuDNN's engines, 2 GB, are loaded only on a GPU. They are left out unless GPU=true.
ARG GPU=false
RUN --mount=type=cache,target=/root/.cache \
    --mount=type=secret,id=index \
    --mount=type=bind,source=requirements.lock,target=/build/requirements.lock \
    --mount=type=bind,source=pyproject.toml,target=/build/pyproject.toml \
    cd /build \
 && index=$(cat /run/secrets/index 2>/dev/null || true) \
 && if [ -n "$index" ]; then export PIP_INDEX_URL="$index" UV_DEFAULT_INDEX="$index"; fi \
 && sed -n '/^uv==/,/# via/p' requirements.lock \
    | pip install --quiet --root-user-action=ignore --require-hashes --no-deps -r /dev/stdin \
 && if [ "$GPU" = true ]; then : >/tmp/excludes; else echo triton >/tmp/excludes; fi \
 && uv pip install --quiet --system --link-mode=copy --compile-bytecode \
    --require-hashes --constraint requirements.lock --excludes /tmp/excludes -r pyproject.toml \
 && if [ "$GPU" != true ]; then rm -f /usr/local/lib/python3.11/site-packages/nvidia/cudnn/lib/libcudnn_*; fi \
 && rm /tmp/excludes

# A new volume takes over the owner of the folder on which it is mounted.
RUN useradd --uid 1034 --no-create-home --home-dir /tmp convoy && install -d -o convoy -g convoy /workspace
COPY --chmod=755 serving/stack/healthy serving/stack/secrets serving/stack/convoy serving/stack/worker /usr/local/bin/

COPY --from=code /convoy /convoy

USER convoy
WORKDIR /workspace
ENV HOME=/tmp PYTHONPATH=/workspace PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    MPLCONFIGDIR=/tmp/matplotlib DVC_SITE_CACHE_DIR=/tmp/dvc
ENTRYPOINT ["secrets", "worker"]
CMD ["convoy", "worker"]
