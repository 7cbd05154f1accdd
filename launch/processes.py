"""Processes that are ranks: heard line by line, told of signals, and none outlives its parent."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from types import MappingProxyType
from typing import IO

from pretrain.exit_status import of_process

GRACE = 5.0  # seconds between SIGTERM and SIGKILL, once a rank has failed
LAST_LINES = 15  # of the rank that failed first
PASSED_ON = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded before any fork


class Rank:
    """A process whose output is copied to a log and, if it is `shown`, to stderr."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path, *, shown: bool
    ) -> None:
        self.log, self.shown, self.last = log, shown, deque[bytes](maxlen=LAST_LINES)
        self._file = log.open("wb", buffering=0)
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            close_fds=False,  # MPICH gives its ranks a descriptor to ask it by
            process_group=0,  # Ctrl-C comes to us, and from us once
            preexec_fn=die_with_parent,
        )
        assert self.process.stdout is not None
        self._thread = Thread(target=self._copy, args=(self.process.stdout,), daemon=True)
        self._thread.start()

    def _copy(self, stream: IO[bytes]) -> None:
        with stream, self._file as log:
            for line in stream:
                log.write(line)
                self.last.append(line)
                if self.shown:
                    sys.stderr.buffer.write(line)
                    sys.stderr.flush()

    @property
    def status(self) -> int | None:
        """As a shell gives it; None: it runs."""
        code = self.process.poll()
        return None if code is None else of_process(code)

    def join(self) -> None:
        """Waits for what is left in the pipe; a child of the rank may hold it open."""
        self._thread.join(1.0)


@contextmanager
def passing_signals_on(
    instead: Mapping[int, int] = MappingProxyType({}),
) -> Iterator[tuple[list[Rank], list[int]]]:
    """Inside, signals reach all ranks that are in the first list; the second has those there were.

    At the end all ranks are killed.

    Args:
        instead: of a signal, the one that is passed on in its place.
    """
    ranks, received = list[Rank](), list[int]()

    def pass_on(number: int, _: object) -> None:
        received.append(number)
        for rank in ranks:
            if rank.status is None:
                rank.process.send_signal(instead.get(number, number))

    handlers = {number: signal.signal(number, pass_on) for number in PASSED_ON}
    try:
        yield ranks, received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for rank in ranks:
            rank.process.kill()


def told_to_end(received: Sequence[int]) -> bool:
    """Whether a signal was among them after which a process is not to be started again."""
    return signal.SIGTERM in received or signal.SIGINT in received


def show_last_lines(lines: Sequence[bytes]) -> None:
    """What a rank said before it died."""
    for line in lines:
        print("  " + line.decode(errors="replace").rstrip(), file=sys.stderr)
    sys.stderr.flush()


def default_threads(ranks: int) -> dict[str, str]:
    """Threads of each of so many ranks on this host, unless the user sets their number."""
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // ranks))}


def die_with_parent() -> None:
    """No life of this process without the one who started it (Linux)."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
