"""Locks on folders in which only one process may work, where the file system supports locks.

A lock ends with its process, however the process ends.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pretrain.errors import UserError


def take_lock(descriptor: int, without: Callable[[str], None] = lambda why: None) -> bool:
    """Locks an open file or folder until it is closed; False: another process has the lock.

    Args:
        without: called with the reason if the file system has no locks; then nobody is kept out.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # Lustre without -o flock, NFS without its lock service, ...
        without(str(error.strerror))
    return True


@contextmanager
def alone_in(folder: Path, others: str) -> Iterator[None]:
    """Inside, no other process holds the lock on the folder.

    Raises:
        UserError: one does; `others` says what it does, and the fix.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if not take_lock(descriptor):
            raise UserError(f"{folder}: another process {others}")
        yield
    finally:
        os.close(descriptor)


@contextmanager
def run_lock(run: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Inside, this process holds the lock on the run. UserError if another process has it.

    Args:
        say: receives one line if the file system has no locks.
    """
    path = run / "lock"

    def without(why: str) -> None:
        fix = f"do not start a second run in {run} while this one is running"
        say(f"{path}: the file system has no locks ({why}); {fix}")

    with path.open("a+") as file:
        if not take_lock(file.fileno(), without):
            file.seek(0)
            raise UserError(
                f"{run}: another run is writing here ({file.read().strip()}); "
                "wait for it, or set another run.name"
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        yield
