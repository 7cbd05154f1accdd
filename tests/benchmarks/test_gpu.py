"""benchmarks/gpu.sh from start to end, at tiny sizes; its stage "tests" is a folder of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_all_stages(tmp_path: Path) -> None:
    stages = ["environment", "graphs", "1B", "rule110"]
    command = [str(ROOT / "benchmarks" / "gpu.sh"), *stages, "--out", str(tmp_path)]
    settings = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    outcomes = {row["stage"]: row["outcome"] for row in rows if row["what"] == "stage"}
    assert outcomes == dict.fromkeys(stages, "done")
    measured = {row["what"] for row in rows}
    assert {"machine", "ours, N = 1", "a pass", "transformers", "step"} <= measured
    if not torch.cuda.is_available():
        assert "left out on a CPU" in (tmp_path / "log-graphs.txt").read_text()
    assert (tmp_path / "rule110.jsonl").read_text().count('"kind": "train"') == 3
    assert done.stdout.rstrip().splitlines()[-1].startswith("stage ")


def test_a_stage_that_fails_does_not_end_the_others(tmp_path: Path) -> None:
    command = [str(ROOT / "benchmarks" / "gpu.sh"), "environment", "graphs", "--budget", "16"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "no time left" in done.stdout and "bf16 product" in done.stdout


def test_only_the_part_of_transformers_needs_it() -> None:
    """A machine may have a version without this model; the other parts are measured there."""
    says = "import sys; sys.modules['transformers'] = None; import benchmarks.gpu.speed"
    subprocess.run([sys.executable, "-c", says], cwd=ROOT, check=True)
