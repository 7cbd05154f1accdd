"""Robust output: any character can be printed, and a broken stderr does not end a command."""

from __future__ import annotations

import io
import os
import sys


class Unread(io.FileIO):
    """A stream that drops lines that cannot be written: a closed pipe or terminal, a full disk.

    A run that has trained for days must not end, or fail to save, because its `tee` has ended; its
    results are in its folder.
    """

    def write(self, data: bytes) -> int:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError:
            return len(data)


def write_anything() -> None:
    """Makes stdout and stderr escape characters that a terminal lacks (\\xe9), and stderr tolerate
    a lost reader. Those that were closed (`2>&-`) become /dev/null.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if sys.stderr is sys.__stderr__ and isinstance(sys.stderr, io.TextIOWrapper):
        raw = Unread(sys.stderr.fileno(), "w", closefd=False)
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(raw), sys.stderr.encoding, "backslashreplace", line_buffering=True
        )
