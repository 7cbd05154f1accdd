"""Files that are there whole or not at all, and what proves it."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pretrain.errors import UserError


def read_whole(path: Path, most: int | None = None) -> bytes:
    """A regular file's content. OSError for a pipe or a device, which might have no end, and if it
    does not fit.

    Args:
        most: bytes that it may have.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    if most is not None and status.st_size > most:
        raise OSError(
            errno.EFBIG, f"more than {most >> 20} MiB, which none of its kind has", str(path)
        )
    try:
        return path.read_bytes()
    except MemoryError:
        raise OSError(errno.ENOMEM, "does not fit in memory", str(path)) from None


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Waits until a file's content, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside, a file of a run is written: a full disk, or a folder that cannot be written, is a
    UserError.
    """
    try:
        yield
    except OSError as error:
        where = error.filename or path  # a disk that is full names no file
        raise UserError(
            f"{where}: cannot be written: {error.strerror}; make room there, or set run.dir (what is saved is intact)"
        ) from None


def write_atomically(path: Path, text: str) -> None:
    """Replaces a small file as a whole, durably."""
    draft = path.with_name(f".{path.name}.draft")
    if draft.is_symlink():  # it would lead elsewhere
        draft.unlink()
    draft.write_text(text, encoding="utf-8")
    sync(draft)
    draft.rename(path)
    sync(path.parent)
