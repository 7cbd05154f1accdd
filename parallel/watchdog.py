"""Ends a rank that makes no progress, and says where it stood.

Ranks wait for each other all the time, so one that hangs hangs them all. Each notes what it begins
with `doing`. When a note grows older than the timeout of the run, a thread that looks on says so
in one line, with rank, host, place in the grid and the note, and ends the process a little later:
by then every rank that is stuck has said whether it computes or waits. The launcher (torchrun,
srun) ends those that could not.
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

GRACE = 3.0  # seconds between the line and the end


@dataclass
class _Note:
    """What this rank is doing; one for the process, which the watching thread reads."""

    what: tuple[object, ...] = ("starting",)
    part: tuple[object, ...] = ()
    since: float = 0.0  # on the monotonic clock, in seconds
    no_timeout: bool = False


_note = _Note()


def doing(*what: object) -> None:
    """Notes what this rank begins now: words and values, joined only if they are shown."""
    _note.what, _note.part, _note.since = what, (), time.monotonic()


def part(*which: object) -> None:
    """Notes the part of it that begins now."""
    _note.part, _note.since = which, time.monotonic()


@contextmanager
def no_timeout(*what: object) -> Iterator[None]:
    """Inside, it takes as long as it takes: a disk of unknown speed is read, say."""
    doing(*what)
    _note.no_timeout = True
    try:
        yield
    finally:
        doing(*what)  # first: by then the note is older than any timeout
        _note.no_timeout = False


def activity() -> str:
    """What this rank is doing, and where it is."""
    said = ((mesh.describe_rank(),), _note.what, _note.part)
    return ", ".join(" ".join(map(str, words)) for words in said if words)


@contextmanager
def watching(timeout: float, status: int) -> Iterator[None]:
    """Inside, a rank that begins nothing new for `timeout` seconds ends with a message on stderr,
    and with this status.

    An exception gets a note of the rank's activity. A process that is alone is left alone.
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
