"""What the stages share: where results go, how time is measured, real or tiny sizes."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

OUT = Path("runs/gpu")
RESULTS = "results.jsonl"


def folder() -> Path:
    """Where results go: what `python -m benchmarks.gpu --out` named, or OUT."""
    found = Path(os.environ.get("HYPNOS_GPU_OUT", OUT))
    found.mkdir(parents=True, exist_ok=True)
    return found


def record(what: str, **numbers: Any) -> None:
    """Writes a row of results at once, and prints it."""
    row = {"what": what} | {
        k: round(v, 5) if isinstance(v, float) else v for k, v in numbers.items()
    }
    with (folder() / RESULTS).open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(row, flush=True)


def device() -> torch.device:
    """The GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def is_tiny() -> bool:
    """Whether sizes are to be tiny: a run on a CPU is only a rehearsal."""
    return device().type == "cpu"


def seconds(run: Callable[[], object], repeats: int = 5, warm_ups: int = 2) -> float:
    """The median time of a run, its kernels included, after some warm-up runs that compile."""
    for _ in range(warm_ups):
        run()
    if device().type == "cpu":
        repeats = 1
    found = []
    for _ in range(repeats):
        synchronize()
        begin = time.perf_counter()
        run()
        synchronize()
        found.append(time.perf_counter() - begin)
    return statistics.median(found)


def synchronize() -> None:
    """Waits for the device."""
    if device().type == "cuda":
        torch.cuda.synchronize()
