"""What a command writes: any character, and a command outlives who reads what it says on stderr."""

from __future__ import annotations

import io
import sys


class Unread(io.FileIO):
    """A stream whose lines are lost when nobody can take them: a closed pipe or terminal, a full
    disk.

    A run that has trained for days must not end, or fail to save, because `tee` has; what it
    writes down is in its folder.
    """

    def write(self, data: bytes) -> int:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError:
            return len(data)


def write_anything() -> None:
    """A terminal that lacks a character gets its escape (\\xe9) rather than a traceback, and
    stderr may break.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if sys.stderr is sys.__stderr__ and isinstance(sys.stderr, io.TextIOWrapper):
        raw = Unread(sys.stderr.fileno(), "w", closefd=False)
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(raw), sys.stderr.encoding, "backslashreplace", line_buffering=True
        )
