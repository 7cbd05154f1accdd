"""Ranks on this host: started together, ended together, heard one by one.

    stdout, stderr    rank 0's as they come; every rank's, whole, in a log of its own
    one rank fails    its last lines are shown first, and the others get SIGTERM, then SIGKILL
    a signal          is passed on to all ranks: SIGTERM and SIGUSR1 make them save and end
    this dies         the kernel ends the ranks (Linux), so that none stays behind

The ranks' store lives here, not in rank 0: ranks that outlive it can still tell what they saw.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import IO

GRACE = 5.0  # seconds between SIGTERM and SIGKILL, once a rank has failed
LAST_LINES = 15  # of the rank that failed first
REQUEUE = 75  # "temporary failure": saved, to be started again
PASSED_ON = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded before any fork


def run_ranks(command: Sequence[str], *, ranks: int, logs: Path) -> int:
    """Runs a command as every rank of a world on this host.

    Args:
        logs: folder that gets rank-R.log.
    Returns:
        0 if all ranks gave 0; 75 if all that did not gave that; else the status of the first rank
        that failed (128 + n if signal n killed it).
    """
    from torch.distributed import TCPStore

    logs.mkdir(parents=True, exist_ok=True)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with _passing_signals_on() as processes:
        for rank in range(ranks):
            variables = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(store.port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is here already
                "TORCHELASTIC_RESTART_COUNT": "0",
            }
            threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // ranks))}
            process = subprocess.Popen(
                command,
                env=threads | os.environ | variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                process_group=0,  # Ctrl-C comes to us, and from us once
                preexec_fn=_die_with_parent,
            )
            processes.append(process)
        outputs = [_Output(p, logs / f"rank-{r}.log", r == 0) for r, p in enumerate(processes)]
        return _wait(processes, outputs)


class _Output:
    """Copies what a rank writes to its log, keeps the last lines, and shows rank 0's."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, shown: bool) -> None:
        assert process.stdout is not None
        self.log, self.shown, self.last = log, shown, deque[bytes](maxlen=LAST_LINES)
        self._thread = Thread(target=self._copy, args=(process.stdout,), daemon=True)
        self._thread.start()

    def _copy(self, stream: IO[bytes]) -> None:
        with stream, self.log.open("wb", buffering=0) as log:
            for line in stream:
                log.write(line)
                self.last.append(line)
                if self.shown:
                    sys.stderr.buffer.write(line)
                    sys.stderr.flush()

    def join(self) -> None:
        """Waits for what is left in the pipe; a child of the rank may hold it open."""
        self._thread.join(1.0)


def _wait(processes: list[subprocess.Popen[bytes]], outputs: list[_Output]) -> int:
    """Waits for all ranks, at most GRACE seconds longer than for the first that fails."""
    running, failed, asked = dict(enumerate(processes)), 0, False
    deadline = float("inf")
    while running:
        time.sleep(0.05)
        for rank in [rank for rank, process in running.items() if process.poll() is not None]:
            status = _status(running.pop(rank))
            if status and (not failed or (failed == REQUEUE and not asked)):
                failed = status
            if status not in (0, REQUEUE) and not asked:
                asked, deadline = True, time.monotonic() + GRACE
                _tell(rank, status, outputs[rank])
                for process in running.values():
                    process.terminate()
        if time.monotonic() > deadline:
            for process in running.values():
                process.kill()
    for output in outputs:
        output.join()
    return failed


def _status(process: subprocess.Popen[bytes]) -> int:
    """As a shell gives it."""
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _tell(rank: int, status: int, output: _Output) -> None:
    """The first death, with what was said before it."""
    output.join()
    print(f"hypnos: error: rank {rank} ended with status {status} ({output.log}):", file=sys.stderr)
    if not output.shown:
        for line in output.last:
            print("  " + line.decode(errors="replace").rstrip(), file=sys.stderr)
    sys.stderr.flush()


@contextmanager
def _passing_signals_on() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Inside, signals reach all ranks that are in the list."""
    processes: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _: object) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    handlers = {number: signal.signal(number, pass_on) for number in PASSED_ON}
    try:
        yield processes
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for process in processes:
            process.kill()


def _die_with_parent() -> None:
    """In the child, between fork and exec: no life without the one who started it."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
