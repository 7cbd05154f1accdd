"""Profiles some steps with torch.profiler, into one file per rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist
from torch.profiler import profile, schedule

from pretrain.config.schema import TrainConfig
from pretrain.files import writes_user_file

FOLDER = "profile"


@contextmanager
def traced(config: TrainConfig, run: Path, step: int) -> Iterator[Callable[[], None]]:
    """Profiles the steps that train.profile names; if the run ends among them, those up to its end.

    Args:
        step: the last step done.
    Yields:
        a function to call after each step.
    """
    first, last = config.profile or (0, 0)
    first = max(first, step + 1)
    if first > last:
        yield lambda: None
        return
    before = first - 1 - step
    when = schedule(
        wait=max(0, before - 1), warmup=min(before, 1), active=last - first + 1, repeat=1
    )
    path = run / FOLDER / f"steps-{first}-to-{last}-rank-{dist.get_rank()}.json.gz"

    def write(seen: profile) -> None:
        with writes_user_file(path):
            path.parent.mkdir(exist_ok=True)
            seen.export_chrome_trace(str(path))

    with profile(schedule=when, on_trace_ready=write) as watching:
        yield watching.step
