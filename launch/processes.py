"""Rank processes: their output is logged, signals are forwarded, and none outlives its parent."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from types import MappingProxyType
from typing import IO

from pretrain.exit_status import of_process
from pretrain.origin import cores
from pretrain.run.signals import die_with_parent, not_ignored

GRACE = 5.0  # seconds between SIGTERM and SIGKILL, once a rank has failed
LAST_LINES = 15  # of the rank that failed first
PASSED_ON = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
HELD = (signal.SIGUSR1,)  # blocked in ranks until they handle it (pretrain/run/signals.py)


class Rank:
    """A process whose output is copied to a log and, if it is `shown`, to stderr.

    Args:
        held: signals that are blocked in it until it unblocks them.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        *,
        shown: bool,
        held: Collection[signal.Signals] = (),
    ) -> None:
        def before_it_begins() -> None:
            die_with_parent()
            signal.pthread_sigmask(signal.SIG_SETMASK, held)

        self.log, self.shown, self.last = log, shown, deque[bytes](maxlen=LAST_LINES)
        self._file = log.open("wb", buffering=0)
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            close_fds=False,  # MPICH's ranks inherit a descriptor to talk to it
            process_group=0,  # Ctrl-C reaches only us, and we forward it once
            preexec_fn=before_it_begins,
        )
        assert self.process.stdout is not None
        self._thread = Thread(target=self._copy, args=(self.process.stdout,), daemon=True)
        self._thread.start()

    def _copy(self, stream: IO[bytes]) -> None:
        with stream, self._file as log:
            for line in stream:
                with suppress(OSError):  # on a full disk: keep reading, or the rank would block
                    log.write(line)
                self.last.append(line)
                if self.shown:
                    sys.stderr.buffer.write(line)
                    sys.stderr.flush()

    @property
    def status(self) -> int | None:
        """The exit status as a shell has it; None: it is running."""
        code = self.process.poll()
        return None if code is None else of_process(code)

    def join(self) -> None:
        """Waits for the rest of its output, but not long: a child of the rank may keep the pipe
        open.
        """
        self._thread.join(1.0)


@contextmanager
def passing_signals_on(
    to: Iterable[Rank], instead: Mapping[int, int] = MappingProxyType({})
) -> Iterator[tuple[list[Rank], list[int]]]:
    """Starts the ranks and forwards signals. Yields (ranks, signals so far).

    Blocked signals are delivered now; at the end they are blocked again, and all ranks are killed.
    SIGHUP is forwarded as SIGTERM unless ignored (nohup).

    Args:
        to: the ranks, lazily: each starts when the iterable yields it.
        instead: signal -> the one that is forwarded in its place.
    """
    ranks, received = list[Rank](), list[int]()

    def send(number: int, rank: Rank) -> None:
        if rank.status is None:
            rank.process.send_signal(instead.get(number, number))

    def pass_on(number: int, _: object) -> None:
        number = signal.SIGTERM if number == signal.SIGHUP else number
        received.append(number)
        for rank in ranks:
            send(number, rank)

    heard = (*PASSED_ON, *not_ignored(signal.SIGHUP))
    handlers = {number: signal.signal(number, pass_on) for number in heard}
    held = signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    try:
        for rank in to:
            ranks.append(rank)
            for number in received:  # those that came before it was started
                send(number, rank)
        yield ranks, received
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for rank in ranks:
            rank.process.kill()


def told_to_end(received: Sequence[int]) -> bool:
    """Whether one of the signals means that a run must not be started again."""
    return signal.SIGTERM in received or signal.SIGINT in received


def default_threads(ranks: int) -> str:
    """OMP_NUM_THREADS for each of `ranks` ranks on this host, unless it is set."""
    return str(max(1, cores() // ranks))
