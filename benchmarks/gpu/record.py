"""What the stages share: where results go, how time is taken, whether sizes are real or tiny."""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.variants import keep_one_variant

RESULTS = "results.jsonl"
_once = False


def only_once() -> None:
    """From now on all is run once, so that its kernels are compiled, and nothing is recorded."""
    global _once
    _once = True
    if device().type == "cuda":
        keep_one_variant()


def is_recorded() -> bool:
    """Whether this process measures."""
    return not _once


def record(what: str, **numbers: Any) -> None:
    """Writes a row down as soon as it is known, and shows it."""
    row = {"what": what} | {
        k: round(v, 5) if isinstance(v, float) else v for k, v in numbers.items()
    }
    if _once:
        return
    with (Path(os.environ["HYPNOS_GPU_OUT"]) / RESULTS).open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(row, flush=True)


def device() -> torch.device:
    """The GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def is_tiny() -> bool:
    """Whether sizes are to be tiny: on a CPU this is a rehearsal."""
    return device().type == "cpu"


def seconds(run: Callable[[], object], repeats: int = 5, warm_ups: int = 2) -> float:
    """The median time of a run, its kernels included, after some that compile and warm up."""
    for _ in range(1 if _once else warm_ups):
        run()
    if _once:
        return math.inf
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
