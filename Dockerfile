# The service in an image: `--target cpu`, or `--target cuda` (the default) for GPUs.
#
#   docker build -t parallel-sdxl:0.1.0 .
#   docker build --target cpu --build-arg TORCH_INDEX=... -t parallel-sdxl:0.1.0-cpu .
#
# TORCH_INDEX is PyTorch's package index of CPU builds (see "Start locally" on pytorch.org). Without it the CPU image gets
# the build for GPUs, which runs as well but takes some gigabytes. The tested versions are those of Python 3.11.

FROM python:3.11-slim-bookworm AS base
# KubeRay starts Ray and probes pods with bash and wget. Ray's home there is /home/ray.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends bash wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --user-group --create-home --home-dir /home/ray --shell /bin/bash ray \
    && install -d -o ray -g ray /models
ENV HOME=/home/ray \
    PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0

FROM base AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY serve_app serve_app
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM base AS packages
COPY constraints.txt /
RUN python -m venv /opt/venv
COPY --from=wheel /wheels /wheels

FROM packages AS cpu-packages
ARG TORCH_INDEX=
RUN pip install --no-cache-dir -c /constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch \
    && pip install --no-cache-dir -c /constraints.txt /wheels/*.whl

FROM packages AS cuda-packages
RUN pip install --no-cache-dir -c /constraints.txt /wheels/*.whl

FROM base AS cpu
COPY --from=cpu-packages /opt/venv /opt/venv
COPY configs /opt/parallel-sdxl/configs
USER 1000:1000
WORKDIR /home/ray
EXPOSE 8000
CMD ["python", "-m", "serve_app.serve", "/opt/parallel-sdxl/configs/local.yaml"]

FROM base AS cuda
# torch's compiler builds C and C++ (`engine.compile`).
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=cuda-packages /opt/venv /opt/venv
COPY configs /opt/parallel-sdxl/configs
USER 1000:1000
WORKDIR /home/ray
EXPOSE 8000
CMD ["python", "-m", "serve_app.serve", "/opt/parallel-sdxl/configs/sdxl.yaml"]
