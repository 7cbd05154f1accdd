"""Folders and files that are there whole or not at all."""

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
    """
    if out.is_mount():  # nothing can be renamed to it: said before the work, not after it
        raise UserError(f"{out}: is a mount point; give a folder in it")
    place = Path(os.path.realpath(out))
    with writes_output(out), draft_of(place) as work:
        work.mkdir()
        yield work
        sync(work)
        strays = list(place.iterdir()) if place.exists() else []  # hidden: .DS_Store
        if not all(map(is_hidden, strays)):
            raise UserError(f"{out}: another process has written it meanwhile")
        for stray in strays:
            stray.rename(work / stray.name)
        work.rename(place)
        sync(place.parent)


@contextmanager
def writes_output(out: Path) -> Iterator[None]:
    """Inside, an error of the system is a UserError that names `out`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written: {error.strerror}; make room there, or give another name"
        ) from None


@contextmanager
def draft_of(place: Path) -> Iterator[Path]:
    """A hidden name beside `place`, for a folder or a file that only this process writes. What
    bears it at the end is removed.

    What a killed process has left is removed by the next. Whose process lives is told by its lock
    on the file beside the draft, which ends with the process.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    for left in place.parent.glob(f".{glob.escape(place.name)}.partial-*.lock"):
        _remove_left_over(left)
    with tempfile.NamedTemporaryFile(
        prefix=f".{place.name}.partial-", suffix=".lock", dir=place.parent
    ) as lock:
        with suppress(OSError):  # no locks on this file system: what is left over stays, too
            fcntl.flock(lock, fcntl.LOCK_EX)
        draft = Path(lock.name).with_suffix("")
        try:
            yield draft
        finally:
            with suppress(OSError):
                _remove(draft)


def _remove_left_over(lock: Path) -> None:
    """Removes a draft and its lock, unless another process has it."""
    draft = lock.with_suffix("")
    try:
        with lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if draft.exists():  # or its process is about to lock it
                _remove(draft)
                lock.unlink()
    except OSError:  # it lives, or is another user's, or there are no locks to ask
        return


def _remove(draft: Path) -> None:
    if draft.is_dir():
        shutil.rmtree(draft)
    else:
        draft.unlink(missing_ok=True)
