"""A run as a job on the cluster, started and inspected as by a user."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from launch import starts
from tests.cluster.slurm import Cluster, sh
from tests.resume import saved

CONFIG = Path(__file__).with_name("small.toml")
STEPS = 30
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
SOON = 10.0  # seconds within which one rank's death ends all
LONG = 300.0  # seconds: a start takes ten on idle cores
TRAIN = (sys.executable, "-m", "launch", "train")


def hypnos(*arguments: str) -> str:
    """The output of a `hypnos` command."""
    return sh(sys.executable, "-m", "launch", *arguments)


def arguments(run: Path) -> list[str]:
    """Arguments of `hypnos train` for a run in this folder."""
    return [str(CONFIG), f"run.dir={run.parent}", f"run.name={run.name}"]


def assert_same(run: Path, other: Path) -> None:
    """The same weights, moments and position in the data at the end, bit for bit."""
    saved.assert_same(saved.folder(run, STEPS), saved.folder(other, STEPS))


def soon(reference: Path) -> float:
    """SOON, or on a slow machine the duration of a whole run, if that is longer."""
    (whole,) = starts.starts(reference)
    assert whole.end is not None
    return max(SOON, whole.end.time - whole.time)


def logs(run: Path) -> str:
    """The output of its batch scripts and ranks so far."""
    paths = sorted(run.glob("logs/**/*.log")) + sorted(run.parent.glob("logs/slurm-*.log"))
    return "\n".join(f"--- {path}\n{path.read_text(errors='replace')[-3000:]}" for path in paths)


class Run:
    """A run of two ranks on two nodes."""

    touched: ClassVar[list[Path]] = []  # by the current test: conftest.py shows them if it fails

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.folder = cluster.folder / "runs" / name
        self.train = arguments(self.folder)
        self.job = ""
        self.touched.append(self.folder)

    def submit(self, *options: str) -> None:
        hypnos("launch", "slurm", *self.train, "--nodes", "2", "--submit", *options)
        self.find_job()

    def find_job(self) -> None:
        """Finds the job after submission."""
        job = starts.newest_job(self.folder)
        assert job is not None, f"{self.folder}: nothing was submitted"
        self.job = job

    def until_over(self, state: str) -> None:
        """Waits until the job is over, in this state."""
        self.cluster.until(lambda: self.state in OVER, LONG, f"{self.folder.name} is over", 0.5)
        assert self.state == state, f"{self.folder.name}: job {self.job} is {self.state}"

    def until_step(self, step: int) -> None:
        """Waits until it has a checkpoint of that step or a later one."""

        looks = itertools.count()

        def there() -> bool:
            assert next(looks) % 20 or self.state not in OVER, f"{self.folder.name}: {self.state}"
            return (starts.newest_step(self.folder) or 0) >= step

        self.cluster.until(there, LONG, f"{self.folder.name} is at step {step}")

    def hold(self) -> list[int]:
        """Suspends its ranks, so that it does not end before it is disturbed on a slow machine."""
        ranks = [pid for node in self.starts[-1].nodes for pid in self.ranks(node)]
        for pid in ranks:
            os.kill(pid, signal.SIGSTOP)
        return ranks

    @contextlib.contextmanager
    def held_at(self, step: int) -> Iterator[list[int]]:
        """In this context, its ranks are suspended, some steps after that step's checkpoint."""
        self.until_step(step)
        ranks = self.hold()
        try:
            yield ranks
        finally:
            let_go(ranks)

    @property
    def state(self) -> str:
        return self.cluster.job(self.job)["JobState"]

    @property
    def starts(self) -> list[starts.Start]:
        return starts.starts(self.folder)

    def batch_log(self) -> str:
        number = self.starts[-1].job
        (path,) = [
            *self.folder.glob(f"logs/slurm-{number}.log"),
            *self.folder.parent.glob(f"logs/slurm-{self.job}.log"),  # an array's
        ]
        return path.read_text()

    def ranks(self, node: str) -> list[int]:
        """The processes of the run's ranks on a node, without their launchers."""
        return self.cluster.processes_of(node, f"launch train {' '.join(self.train)}")

    def kill_rank(self, node: str) -> None:
        (pid,) = self.ranks(node)
        os.kill(pid, signal.SIGKILL)


def let_go(pids: list[int]) -> None:
    """Resumes suspended processes; some may be gone."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
