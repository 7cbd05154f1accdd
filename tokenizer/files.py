"""Atomic file writes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tokenizer.errors import TokenizerError


def check_writable(path: Path) -> None:
    """TokenizerError if `write_atomic` could not write `path`. Creates nothing."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir():
        reason = "it is a folder"
    elif not folder.is_dir():
        reason = f"{folder} is not a folder"
    elif not os.access(folder, os.W_OK | os.X_OK):
        reason = f"no permission to write in {folder}"
    else:
        return
    raise TokenizerError(f"{path}: cannot be written: {reason}; give another file")


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically: readers see the old or the new file, even after a
    crash.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)  # mkstemp makes it private
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be written: {error.strerror}") from None
