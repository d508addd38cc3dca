# yonos in a container; docs/wheels.md says more.
#   docker build -t yonos .
#   docker build -t yonos-gpu --build-arg BASE=nvidia/cuda:13.0.1-base-ubuntu24.04 --build-arg EXTRAS=images,video,rtx .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/data" yonos upscale -i photo.jpg -o photo_x4.png
# The second one is run with --gpus all. BASE is any Debian or Ubuntu whose python3 is 3.11 or later.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
# Versions are the base image's own: its archive keeps one of each.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
ARG EXTRAS=images,video
RUN python3 -m venv /opt/yonos \
    && PIP_CONSTRAINT=constraints.txt /opt/yonos/bin/pip install --no-cache-dir ".[${EXTRAS}]" \
    && /opt/yonos/bin/python -P -c "import yonos_trt._native"

FROM ${BASE}
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home yonos
COPY --from=build /opt/yonos /opt/yonos
ENV PATH=/opt/yonos/bin:$PATH
USER 10001
WORKDIR /data
ENTRYPOINT ["yonos"]
CMD ["--help"]
