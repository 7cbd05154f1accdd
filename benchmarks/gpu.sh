#!/usr/bin/env bash
# Checks and measures Hypnos on one GPU: `benchmarks/gpu.sh --help` lists the stages and options.
#
# For a bare machine (CUDA 13, Python 3.12, torch 2.11, transformers, no network): what it lacks
# comes from a kit of wheels, .gpu-kit, made with `make gpu-kit` on a machine with a network.
set -euo pipefail
cd "$(dirname "$0")/.."

kit=${HYPNOS_GPU_KIT:-.gpu-kit}
python=python3
[[ -x .venv/bin/python ]] && python=.venv/bin/python
if compgen -G "$kit/*.whl" >/dev/null && [[ $python == python3 ]]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir \
        --target "$site" "$kit"/*.whl
    export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false
"$python" -m benchmarks.gpu "$@"
