"""A run that is restarted again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from pretrain.config.load import dump
from tests.resume.job import Job
from tests.resume.problem import Case, make_config

LONGEST = 120.0  # seconds that an undisturbed job may take
SOON = 30.0  # seconds in which ranks that cannot continue must end


class Run:
    """A run's folder and the starts of the run, in a folder with nothing else.

    Args:
        root: where all of it is created. changes: settings of [train] by name.
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
        """Starts the run, again or for the first time; see `Job`."""
        self.jobs += 1
        notes = self.root / "notes" / str(self.jobs)
        return Job(self.config, self.case.world, notes, self.scratch, clock, unread)

    def finish(self, clock: float = 0.0) -> Job:
        """Starts it, and leaves it alone until it is done."""
        job = self.start(clock)
        assert job.wait(LONGEST) == [0] * self.case.world, job.log()
        return job

    def leftovers(self) -> list[Path]:
        """Drafts and files left to delete; a finished run must have none."""
        return list(self.folder.rglob(".*"))

    def strangers(self) -> list[Path]:
        """Files that do not belong beside the run's folder, except torch's own cache."""
        scratch = [path for path in self.scratch.iterdir() if "torchinductor" not in path.name]
        return [*scratch, *({*(self.root / "runs").iterdir()} - {self.folder})]


def until(job: Job, seconds: float, happens: Callable[[], bool] = lambda: False) -> None:
    """Waits until `happens()`, `seconds` have passed or the job has ended."""
    end = time.monotonic() + seconds
    while job.alive and not happens() and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 0.002))  # polling more often would take a core from the ranks


def errors(job: Job, rank: int) -> list[str]:
    """A rank's output without progress, and without remarks on its model or its text."""
    lines = [line for line in job.output(rank).splitlines() if not line.endswith(" ...")]
    remarks = (
        "step ", "resuming ", "preflight: ", "`hypnos export --to gguf` will refuse",
        "evaluated on ",
    )  # fmt: skip
    told = [line for line in lines if not line.startswith(remarks)]
    return [line for line in told if "/shards/train: " not in line]


def assert_ends(job: Job, *, said: list[str], statuses: list[int]) -> None:
    """All ranks end soon, each with one line that contains all of `said`."""
    assert job.wait(SOON) == statuses, job.log()
    for rank in range(len(job.processes)):
        line = "\n".join(errors(job, rank))
        assert line.count("\n") == 0, line
        assert line.startswith("hypnos: error: ") and all(part in line for part in said), job.log()
