"""Folders that are there whole or not at all."""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pretrain.errors import UserError
from pretrain.files import is_hidden, sync


@contextmanager
def appearing_whole(out: Path) -> Iterator[Path]:
    """A folder to work in that becomes `out` at the end, or vanishes if anything goes wrong.

    If `out` is a link, it is what that leads to: the work is done on its disk, and renamed there.
    One that a killed process has left is removed by the next. Whose process lives is told by its
    lock on the file beside the folder, which ends with the process.
    """
    if out.is_mount():  # nothing can be renamed to it: said before the work, not after it
        raise UserError(f"{out}: a disk is mounted there; give a folder in it")
    out = Path(os.path.realpath(out))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for left in out.parent.glob(f".{glob.escape(out.name)}.partial-*.lock"):
            _remove_left_over(left)
        with tempfile.NamedTemporaryFile(
            prefix=f".{out.name}.partial-", suffix=".lock", dir=out.parent
        ) as lock:
            with suppress(OSError):  # no locks on this file system: what is left over stays, too
                fcntl.flock(lock, fcntl.LOCK_EX)
            work = Path(lock.name).with_suffix("")
            work.mkdir()
            try:
                yield work
                sync(work)
                strays = list(out.iterdir()) if out.exists() else []  # hidden: .DS_Store
                if not all(map(is_hidden, strays)):
                    raise UserError(f"{out}: another process has written it meanwhile")
                for stray in strays:
                    stray.rename(work / stray.name)
                work.rename(out)
                sync(out.parent)
            except BaseException:
                shutil.rmtree(work, ignore_errors=True)
                raise
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from None


def _remove_left_over(lock: Path) -> None:
    """Removes a folder that was being written, and its lock, unless another process has it."""
    work = lock.with_suffix("")
    try:
        with lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if work.is_dir():  # or its process is about to lock it
                shutil.rmtree(work)
                lock.unlink()
    except OSError:  # it lives, or is another user's, or there are no locks to ask
        return
