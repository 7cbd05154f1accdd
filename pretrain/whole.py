"""Folders and files that appear atomically: complete, or not at all."""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pretrain.errors import UserError, not_written
from pretrain.files import is_hidden, sync


@contextmanager
def appearing_whole(out: Path) -> Iterator[Path]:
    """A folder to work in that is renamed to `out` at the end, or removed if anything fails.

    If `out` is a link, its target is used: the work is done on the target's disk.
    """
    if out.is_mount():  # nothing can be renamed to it; better to say so before the work
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
    """Inside, an OSError becomes a UserError that names `out`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{not_written(out, error)}, or give another name") from None


@contextmanager
def draft_of(place: Path) -> Iterator[Path]:
    """A hidden path beside `place`, for a folder or a file that only this process writes. Whatever
    is still there at the end is removed.

    Leftovers of a killed process are removed by the next one. A live process is known by its lock
    on a file beside the draft, which ends with the process.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    for left in place.parent.glob(f".{glob.escape(place.name)}.partial-*.lock"):
        _remove_left_over(left)
    with tempfile.NamedTemporaryFile(
        prefix=f".{place.name}.partial-", suffix=".lock", dir=place.parent
    ) as lock:
        with suppress(OSError):  # no locks on this file system: then leftovers stay, too
            fcntl.flock(lock, fcntl.LOCK_EX)
        draft = Path(lock.name).with_suffix("")
        try:
            yield draft
        finally:
            with suppress(OSError):
                _remove(draft)


def _remove_left_over(lock: Path) -> None:
    """Removes a draft and its lock file, unless a live process holds the lock."""
    draft = lock.with_suffix("")
    try:
        with lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if draft.exists():  # if not, its process may be about to lock it
                _remove(draft)
                lock.unlink()
    except OSError:  # its process is alive, or it is another user's, or there are no locks
        return


def _remove(draft: Path) -> None:
    if draft.is_dir():
        shutil.rmtree(draft)
    else:
        draft.unlink(missing_ok=True)
