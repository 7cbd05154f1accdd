"""Shows a study's progress: a live table on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections import Counter

from rich.console import Console
from rich.live import Live
from rich.table import Table

from pretrain.study.runner import Job

LOG_SECONDS = 60.0
FRAME = 6  # lines of a table beside the runs


class StudyProgress:
    """Context manager; call `show` as often as you like. Writes to stderr."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._live = Live(console=console, refresh_per_second=2) if console.is_terminal else None
        self._states: dict[str, str] = {}
        self._logged = time.monotonic()

    def __enter__(self) -> StudyProgress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, jobs: list[Job]) -> None:
        """Shows the state of all jobs."""
        if self._live:
            self._live.update(_table(jobs, self._live.console.height - FRAME))
            return
        for job in jobs:
            if job.state != self._states.get(job.run.name, "waiting"):
                _say(f"{job.run.name}: {job.state}")
            self._states[job.run.name] = job.state
        if time.monotonic() - self._logged > LOG_SECONDS:
            self._logged = time.monotonic()
            _say(_summary(jobs))


def _summary(jobs: list[Job]) -> str:
    """ "9 runs: 2 done, 1 training; n4-seed0 400/1250"."""
    training = [
        f"{j.run.name} {j.progress().get('step', 0)}/{j.steps}"
        for j in jobs
        if j.state == "training"
    ]
    return "; ".join([_counts(jobs), *training])


def _counts(jobs: list[Job]) -> str:
    counts = ", ".join(f"{n} {state}" for state, n in Counter(j.state for j in jobs).items())
    return f"{len(jobs)} runs: {counts}"


def _table(jobs: list[Job], lines: int) -> Table:
    """All runs; on a small screen, only those in progress and those that failed."""
    table = Table("run", "state", caption=_counts(jobs))
    for column in ("step", "loss", "tokens/s", "tries"):
        table.add_column(column, justify="right")
    for job in jobs:
        if len(jobs) > lines and job.state in ("waiting", "done"):
            continue
        row = job.progress() if job.state in ("training", "evaluating", "saving") else {}
        step = job.steps if job.state == "done" else row.get("step")
        table.add_row(
            job.run.name,
            job.state,
            f"{step or '-'}/{job.steps}",
            f"{row['loss']:.4f}" if row.get("loss") is not None else "-",
            f"{row['tokens_per_s']:,.0f}" if row.get("tokens_per_s") else "-",
            str(job.tries or "-"),
        )
    return table


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
