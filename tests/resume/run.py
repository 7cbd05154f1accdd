"""A run that is restarted again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from pretrain.config.load import dump
from tests.resume.job import Job
from tests.resume.problem import Case, make_config

LONGEST = 120.0  # seconds that a job may take which is left alone
SOON = 30.0  # seconds in which ranks end that cannot go on


class Run:
    """A run's folder and its incarnations, with nothing else beside them.

    Args:
        root: where all of it is to be. changes: settings of [train] by name.
    """

    def __init__(self, case: Case, corpus: Path, root: Path, **changes: object) -> None:
        self.case, self.corpus, self.root = case, corpus, root
        self.folder, self.scratch, self.config = (
            root / "runs/run",
            root / "scratch",
            root / "config.toml",
        )
        self.scratch.mkdir(parents=True)
        self.jobs = 0
        self.config.write_text(dump(make_config(case, corpus, root / "runs", **changes)))

    def start(self, clock: float = 0.0, *, unread: bool = False) -> Job:
        """The next incarnation; see `Job`."""
        self.jobs += 1
        notes = self.root / "notes" / str(self.jobs)
        return Job(self.config, self.case.world, notes, self.scratch, clock, unread)

    def finish(self, clock: float = 0.0) -> Job:
        """An incarnation that is left alone until it is done."""
        job = self.start(clock)
        assert job.wait(LONGEST) == [0] * self.case.world, job.log()
        return job

    def leftovers(self) -> list[Path]:
        """Drafts, and what was to be deleted: nothing of a run that is done."""
        return list(self.folder.rglob(".*"))

    def strangers(self) -> list[Path]:
        """What does not belong beside the run's folder. torch makes a cache of its own."""
        scratch = [path for path in self.scratch.iterdir() if "torchinductor" not in path.name]
        return [*scratch, *({*(self.root / "runs").iterdir()} - {self.folder})]


def until(job: Job, seconds: float, happens: Callable[[], bool] = lambda: False) -> None:
    """Waits until something happens, so many seconds have passed or the job has ended."""
    end = time.monotonic() + seconds
    while job.alive and not happens() and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 0.002))  # oftener, it would take a core from the ranks


def errors(job: Job, rank: int) -> list[str]:
    """What a rank says that is not of its progress, nor a remark on its model or its text."""
    lines = [line for line in job.output(rank).splitlines() if not line.endswith(" ...")]
    remarks = (
        "step ", "resuming ", "preflight: ", "`hypnos export --to gguf` will refuse",
        "evaluated on ",
    )  # fmt: skip
    told = [line for line in lines if not line.startswith(remarks)]
    return [line for line in told if "/shards/train: " not in line]


def assert_ends(job: Job, *, said: list[str], statuses: list[int]) -> None:
    """All ranks end soon, each with one line that says all of this."""
    assert job.wait(SOON) == statuses, job.log()
    for rank in range(len(job.processes)):
        line = "\n".join(errors(job, rank))
        assert line.count("\n") == 0, line
        assert line.startswith("hypnos: error: ") and all(part in line for part in said), job.log()
