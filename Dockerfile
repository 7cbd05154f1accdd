# CPU:   docker build -t hypnos .
# GPU:   docker build -t hypnos --build-arg BASE=nvidia/cuda:13.0.1-devel-ubuntu24.04 --build-arg DEVICE=cuda .
# Run:   docker run --rm -v "$PWD:/workspace" hypnos train configs/depo-small.toml      (with --gpus all on a GPU machine)
ARG BASE=ubuntu:24.04
FROM ${BASE}

RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates g++ make python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

COPY . /opt/hypnos
ARG DEVICE=cpu
RUN make -C /opt/hypnos setup DEVICE=${DEVICE} && rm -rf /root/.cache/pip

ENV PATH=/opt/hypnos/.venv/bin:${PATH}
WORKDIR /workspace
ENTRYPOINT ["hypnos"]
CMD ["--help"]
