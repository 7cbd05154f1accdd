"""A run as a job of the cluster, as a user starts it and looks at it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from launch import starts
from tests.cluster.slurm import Cluster, sh
from tests.resume import saved

CONFIG = Path(__file__).with_name("small.toml")
STEPS = 60
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
LONG = 300.0  # seconds: a start takes ten on idle cores


def hypnos(*arguments: str) -> str:
    """What a command of ours prints."""
    return sh(sys.executable, "-m", "launch", *arguments)


class Run:
    """A run of two ranks on two nodes."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.folder = cluster.folder / "runs" / name
        self.train = [str(CONFIG), f"run.dir={self.folder.parent}", f"run.name={self.folder.name}"]
        self.job = ""

    def submit(self, *options: str) -> None:
        hypnos("launch", "slurm", *self.train, "--nodes", "2", "--submit", *options)
        job = starts.newest_job(self.folder)
        assert job is not None
        self.job = job

    def until_over(self, state: str) -> None:
        """Waits for the job's last state."""
        self.cluster.until(lambda: self.state in OVER, LONG, f"{self.folder.name} is over")
        assert self.state == state, self.log

    def until_step(self, step: int) -> None:
        """Waits until it has a checkpoint of that step, or of a later one."""

        def there() -> bool:
            assert self.state not in OVER, self.log
            return (starts.newest_step(self.folder) or 0) >= step

        self.cluster.until(there, LONG, f"{self.folder.name} is at step {step}")

    @property
    def state(self) -> str:
        return self.cluster.job(self.job)["JobState"]

    @property
    def starts(self) -> list[starts.Start]:
        return starts.starts(self.folder)

    @property
    def log(self) -> str:
        """What the batch script, and the last start's ranks, have written so far."""
        paths = [*self.folder.glob("logs/slurm-*.log"), *self.folder.glob("logs/start-*/*.log")]
        return "\n".join(f"--- {path}\n{path.read_text()[-3000:]}" for path in paths)

    def batch_log(self) -> str:
        return (self.folder / "logs" / f"slurm-{self.job}.log").read_text()

    def ranks(self, node: str) -> list[int]:
        """The processes of the run's ranks on a node, without those that started them."""
        return self.cluster.processes_of(node, f"launch train {' '.join(self.train)}")

    def kill_rank(self, node: str) -> None:
        (pid,) = self.ranks(node)
        os.kill(pid, signal.SIGKILL)

    def assert_same(self, other: Run) -> None:
        """The same weights at the end, bit for bit, and moments, and place in the data."""
        saved.assert_same(saved.folder(self.folder, STEPS), saved.folder(other.folder, STEPS))
