"""Ends a rank that makes no progress, and reports what it was doing.

Ranks wait for each other all the time, so if one hangs, all do. Each records what it begins with
`doing`. When that record is older than the run's timeout, a watching thread prints it in one line,
with rank, host and place in the grid, and ends the process a little later: by then every stuck rank
has reported whether it computes or waits. The launcher (torchrun, srun) ends those that could not.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch.distributed as dist

from parallel import mesh

GRACE = 3.0  # seconds between the report and the exit


@dataclass
class _Note:
    """What this rank is doing; one per process, read by the watching thread."""

    what: tuple[object, ...] = ("starting",)
    part: tuple[object, ...] = ()
    since: float = 0.0  # on the monotonic clock, in seconds
    no_timeout: bool = False


_note = _Note()


def doing(*what: object) -> None:
    """Records what this rank begins now: words and values, formatted only if they are printed."""
    _note.what, _note.part, _note.since = what, (), time.monotonic()


def part(*which: object) -> None:
    """Records which part of it begins now."""
    _note.part, _note.since = which, time.monotonic()


@contextmanager
def no_timeout(*what: object) -> Iterator[None]:
    """Inside, there is no time limit: while a disk of unknown speed is read, for example."""
    doing(*what)
    _note.no_timeout = True
    try:
        yield
    finally:
        doing(*what)  # before the flag is reset: the old record may be older than any timeout
        _note.no_timeout = False


def activity() -> str:
    """What this rank is doing, and where it is."""
    said = ((mesh.describe_rank(),), _note.what, _note.part)
    return ", ".join(" ".join(map(str, words)) for words in said if words)


@contextmanager
def watching(timeout: float, status: int) -> Iterator[None]:
    """Inside, a rank that begins nothing new for `timeout` seconds exits with a message on stderr
    and this status.

    Exceptions get a note with the rank's activity. A world of one is not watched.
    """
    if dist.get_world_size() == 1:
        yield
        return
    done = threading.Event()

    def watch() -> None:
        while not done.wait(min(1.0, timeout / 10)):
            waited = time.monotonic() - _note.since
            if waited > timeout and not _note.no_timeout:
                limit = f"(parallel.timeout = {timeout:g})"
                line = f"hypnos: error: {activity()}: no progress for {waited:.0f} s {limit}"
                print(line, file=sys.stderr, flush=True)
                time.sleep(GRACE)
                os._exit(status)

    doing("starting")
    thread = threading.Thread(target=watch, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    except Exception as error:
        error.add_note(f"hypnos: {activity()}")
        raise
    finally:
        done.set()
        thread.join()
