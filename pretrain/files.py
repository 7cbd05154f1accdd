"""Atomic and durable file writes, checksums, and JSON parsing with short errors."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pretrain.errors import UserError, not_written, shortened, storage_error

_CHECKSUM = b',\n "sha256": "'  # starts the last member of a JSON object with a checksum


def read_whole(path: Path) -> bytes:
    """A regular file's content. OSError for a pipe or a device, or if it does not fit in memory."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    try:
        return path.read_bytes()
    except MemoryError:
        raise OSError(errno.ENOMEM, "does not fit in memory", str(path)) from None


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Waits until a file's content, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replaces a small file atomically and durably. Text is written in UTF-8."""
    draft = path.with_name(f".{path.name}.draft")
    try:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)
        sync(draft)
        draft.rename(path)
    except OSError as error:  # a full disk: frees the draft's space; the error names no file
        draft.unlink(missing_ok=True)
        error.filename = error.filename or str(path)
        raise
    sync(path.parent)


def append_line(path: Path, line: str) -> None:
    """Appends a line to a journal, durably; starts a new line if the last one was cut short."""
    with path.open("a+b") as file:
        cut_short = file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n"
        file.write(b"\n" * cut_short + f"{line}\n".encode())
        file.flush()
        os.fsync(file.fileno())


def strays(folder: Path, known: Container[str]) -> list[str]:
    """Lines about files in a folder that are not `known`; hidden ones are left out. They do not
    mean that the known files are damaged.
    """
    others = [path for path in folder.iterdir() if path.name not in known and not is_hidden(path)]
    what = "does not belong here, and is ignored"
    return [f"{folder}/{shortened(path.name)}: {what}" for path in sorted(others)]


def is_hidden(path: Path) -> bool:
    """Whether a file is hidden, like those that systems leave in any folder: .DS_Store,
    .nfs0001.
    """
    return path.name.startswith(".")


@contextmanager
def writes_user_file(path: Path) -> Iterator[None]:
    """Inside, a run's file is written: a full disk or missing permission becomes a UserError, and
    storage that does not answer `StorageFailed`.
    """
    try:
        yield
    except OSError as error:
        where = error.filename or path  # for a full disk the error has no file name
        raise storage_error(error)(
            f"{not_written(where, error)}, or set run.dir (what is already saved is intact)"
        ) from None


def parse_json(text: str | bytes) -> Any:
    """The JSON value of `text`; ValueError says in a few words why it is invalid."""
    try:
        return json.loads(text.decode() if isinstance(text, bytes) else text)
    except json.JSONDecodeError as error:
        raise ValueError(f"malformed JSON: {error.msg}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"invalid UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None
    except ValueError:  # Python's own limit on the digits of a number
        raise ValueError("JSON with a number of too many digits") from None


def parse_record(line: str | bytes, place: str) -> dict[str, Any]:
    """The JSON object that a line of a file is. UserError names the place."""
    try:
        record = parse_json(line)
    except ValueError as error:
        raise UserError(f"{place}: {error}; each line is one record") from None
    if not isinstance(record, dict):
        raise UserError(f"{place}: not a JSON object; each line is one record")
    return record


def finite(value: Any) -> Any:
    """The value with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def with_checksum(value: Mapping[str, Any]) -> bytes:
    """A (non-empty) JSON object whose last member, "sha256", is the hash of all bytes before it."""
    return _closed(json.dumps(value, indent=1).removesuffix("\n}").encode())


def has_checksum(content: bytes) -> bool:
    """Whether these are intact bytes made by `with_checksum`."""
    return content == _closed(content.rpartition(_CHECKSUM)[0])


def _closed(members: bytes) -> bytes:
    return members + _CHECKSUM + hashlib.sha256(members).hexdigest().encode() + b'"\n}\n'
