"""Real processes for a list of cases."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

import torch

from tests.layouts.cases import Case
from tests.layouts.problem import Problem, Solution, solve

ROOT = Path(__file__).parents[2]


@cache
def expected(problem: Problem) -> Solution:
    """The solution by one process."""
    solution = solve(problem)
    assert min(solution.norms) > 2 * problem.optimization.clip, "clipping must be active"
    return solution


def run(
    script: str, world: int, *arguments: object, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """A script of this repository on `world` real processes."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={world}",
    ]
    return subprocess.run(
        [*command, str(ROOT / script), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip


def compare(cases: Sequence[Case], folder: Path) -> list[dict[str, float]]:
    """The errors of every case; all have the same number of ranks, which are started once."""
    (world,) = {case.layout.world for case in cases}
    (folder / "cases.json").write_text(
        json.dumps([(asdict(c.layout), asdict(c.problem), c.plant) for c in cases])
    )
    for number, case in enumerate(cases):
        torch.save(vars(expected(case.problem)), folder / f"reference-{number}.pt")
    done = run("tests/layouts/worker.py", world, folder, timeout=180 + 60 * len(cases))
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-10_000:]
    found: list[dict[str, float]] = json.loads((folder / "errors.json").read_text())
    return found
