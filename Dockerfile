# CPU    docker build -t hypnos .
# GPU    docker build -t hypnos:cuda --build-arg DEVICE=cuda --build-arg BASE=nvidia/cuda:13.0.1-devel-ubuntu24.04 \
#            --build-arg RUNTIME=nvidia/cuda:13.0.1-base-ubuntu24.04 .
#        (CUDA of torch's own version, 13.0: DeepSpeed compares them; the devel image has the compiler for its operators)
# Run    docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/workspace" hypnos train configs/depo-small.toml
#        (with --gpus all --ipc=host on a GPU machine); two nodes: compose.yaml; Slurm sites: hypnos.def
#
# build     the environment, at the versions of constraints.txt, and DeepSpeed's operators for GPUs
# runtime   the final image: Python, the environment, MPI, a Slurm client; an unprivileged user
# tested    runs tests in the runtime image as that user; the final image is built only if they pass

ARG BASE=debian:12.11-slim
ARG RUNTIME=${BASE}

FROM ${BASE} AS build
ARG DEVICE=cpu
ARG TORCH=2.13.0
ARG GPUS=8.0;9.0;10.0
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# everything that computes is pinned by constraints.txt; system packages come from a Debian or Ubuntu release
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates g++ make python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY . /opt/hypnos
WORKDIR /opt/hypnos
RUN echo "torch==${TORCH}" > /tmp/torch.txt \
    && PIP_NO_CACHE_DIR=1 PIP_CONSTRAINT=/tmp/torch.txt make setup DEVICE="${DEVICE}"
# compiled here, where there is a compiler, instead of by every rank at its first start
RUN if [ "${DEVICE}" = cuda ]; then \
        version=$(grep '^deepspeed==' constraints.txt) \
        && DS_BUILD_UTILS=1 DS_BUILD_FUSED_ADAM=1 DS_BUILD_CPU_ADAM=1 TORCH_CUDA_ARCH_LIST="${GPUS}" \
        .venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation --force-reinstall "${version}"; \
    fi
# Python's bytecode too, as the user cannot write it there (one file of torch's own tests needs a newer Python)
RUN { .venv/bin/python -m compileall -q -j 0 .venv/lib || true; } && chmod -R a+rX /opt/hypnos

FROM ${RUNTIME} AS runtime
# gcc: Triton builds its launcher with a C compiler. srun needs the host's /etc/slurm and munge socket
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        ca-certificates gcc libc6-dev openmpi-bin openssh-client python3 python3-dev slurm-client tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home --shell /bin/bash hypnos \
    && mkdir -p /workspace/runs \
    && chown -R hypnos:hypnos /workspace
COPY --from=build /opt/hypnos /opt/hypnos
ENV PATH=/opt/hypnos/.venv/bin:${PATH} \
    PYTHONUNBUFFERED=1
WORKDIR /workspace
USER 10001:10001
ENTRYPOINT ["tini", "--", "hypnos"]
CMD ["--help"]

FROM runtime AS tested
WORKDIR /opt/hypnos
RUN hypnos doctor \
    && command -v srun sbatch mpirun \
    && HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis python -m pytest -q -p no:cacheprovider -m "not slow" \
        tests/model tests/launch/test_world.py \
    && OMP_NUM_THREADS=1 mpirun -n 2 --oversubscribe hypnos train configs/depo-small.toml run.dir=/tmp/runs \
        train.steps=2 train.eval_batches=1 optimizer.warmup=0 optimizer.decay=0 parallel.pp=2 train.microbatches=2 \
    && touch /tmp/tested

FROM runtime
COPY --from=tested /tmp/tested /opt/hypnos/.tested
