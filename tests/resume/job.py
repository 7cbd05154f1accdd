"""One incarnation of a run: real ranks, from their start to their end, whatever that is."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Iterable
from pathlib import Path

from tests.resume import rank

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload([rank.__name__])


class Job:
    """Starts `world` ranks of `hypnos train CONFIG`.

    Args:
        notes: a new folder for what the ranks note down. scratch: see `rank.main`.
    """

    def __init__(
        self, config: Path, world: int, notes: Path, scratch: Path, clock: float = 0.0
    ) -> None:
        notes.mkdir(parents=True)
        with socket.socket() as probe:  # a port that is free
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.notes, self.began = notes, time.monotonic()
        self.ranks = [
            _processes.Process(
                target=rank.main, args=(r, world, port, config, notes, scratch, clock), daemon=True
            )
            for r in range(world)
        ]
        for process in self.ranks:
            process.start()

    @property
    def alive(self) -> bool:
        """Whether any rank is."""
        return any(process.is_alive() for process in self.ranks)

    def wait(self, seconds: float) -> list[int | None]:
        """Waits for the ranks to end, at most so long; their exit statuses, None of those that have
        not.
        """
        deadline = time.monotonic() + seconds
        for process in self.ranks:
            process.join(max(0.0, deadline - time.monotonic()))
        return [process.exitcode for process in self.ranks]

    def kill(self, ranks: Iterable[int] | None = None) -> bool:
        """SIGKILL to some ranks, or all; whether one of them died of it."""
        victims = [self.ranks[r] for r in ranks] if ranks is not None else self.ranks
        for process in victims:
            process.kill()
        for process in victims:
            process.join()
        return any(process.exitcode == -signal.SIGKILL for process in victims)

    def signal(self, number: signal.Signals, ranks: Iterable[int]) -> None:
        """Asks some ranks to stop, if they are there."""
        for r in ranks:
            pid = self.ranks[r].pid
            if self.ranks[r].is_alive() and pid is not None:
                os.kill(pid, number)

    def journal(self, r: int) -> list[str]:
        """What a rank has noted so far, see `rank`."""
        path = self.notes / f"{r}.journal"
        return path.read_text().splitlines() if path.exists() else []

    def samples(self, r: int) -> list[str]:
        """A checksum of each batch that a rank has taken."""
        return [line for line in self.journal(r) if line.startswith("step")]

    def log(self) -> str:
        """The end of what each rank said."""
        return "\n".join(
            f"{path.name}:\n{path.read_text()[-4000:]}" for path in sorted(self.notes.glob("*.log"))
        )
