"""A run as a job of the cluster, as a user starts it and looks at it."""

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
SOON = 10.0  # seconds in which one rank's death ends all
LONG = 300.0  # seconds: a start takes ten on idle cores
TRAIN = (sys.executable, "-m", "launch", "train")


def hypnos(*arguments: str) -> str:
    """What a command of ours prints."""
    return sh(sys.executable, "-m", "launch", *arguments)


def arguments(run: Path) -> list[str]:
    """Of `hypnos train`, for a run in this folder."""
    return [str(CONFIG), f"run.dir={run.parent}", f"run.name={run.name}"]


def assert_same(run: Path, other: Path) -> None:
    """The same weights at the end, bit for bit, and moments, and place in the data."""
    saved.assert_same(saved.folder(run, STEPS), saved.folder(other, STEPS))


def soon(reference: Path) -> float:
    """SOON; where a whole run takes longer than idle cores need for one, as long as that."""
    (whole,) = starts.starts(reference)
    assert whole.end is not None
    return max(SOON, whole.end.time - whole.time)


def logs(run: Path) -> str:
    """What its batch scripts and ranks have written so far."""
    paths = sorted(run.glob("logs/**/*.log")) + sorted(run.parent.glob("logs/slurm-*.log"))
    return "\n".join(f"--- {path}\n{path.read_text(errors='replace')[-3000:]}" for path in paths)


class Run:
    """A run of two ranks on two nodes."""

    touched: ClassVar[list[Path]] = []  # by the test at work: what conftest.py shows if it fails

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
        """After it was submitted."""
        job = starts.newest_job(self.folder)
        assert job is not None, f"{self.folder}: nothing was submitted"
        self.job = job

    def until_over(self, state: str) -> None:
        """Waits for the job's last state."""
        self.cluster.until(lambda: self.state in OVER, LONG, f"{self.folder.name} is over", 0.5)
        assert self.state == state, f"{self.folder.name}: job {self.job} is {self.state}"

    def until_step(self, step: int) -> None:
        """Waits until it has a checkpoint of that step, or of a later one."""

        looks = itertools.count()

        def there() -> bool:
            assert next(looks) % 20 or self.state not in OVER, f"{self.folder.name}: {self.state}"
            return (starts.newest_step(self.folder) or 0) >= step

        self.cluster.until(there, LONG, f"{self.folder.name} is at step {step}")

    def hold(self) -> list[int]:
        """Stops its ranks, so that a slow machine does not let it end before it is disturbed."""
        ranks = [pid for node in self.starts[-1].nodes for pid in self.ranks(node)]
        for pid in ranks:
            os.kill(pid, signal.SIGSTOP)
        return ranks

    @contextlib.contextmanager
    def held_at(self, step: int) -> Iterator[list[int]]:
        """Inside, its ranks stand still, some steps after a checkpoint of that one."""
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
            *self.folder.parent.glob(f"logs/slurm-{self.job}.log"),  # of an array
        ]
        return path.read_text()

    def ranks(self, node: str) -> list[int]:
        """The processes of the run's ranks on a node, without those that started them."""
        return self.cluster.processes_of(node, f"launch train {' '.join(self.train)}")

    def kill_rank(self, node: str) -> None:
        (pid,) = self.ranks(node)
        os.kill(pid, signal.SIGKILL)


def let_go(pids: list[int]) -> None:
    """Lets processes go on that were stopped; some may be gone."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
