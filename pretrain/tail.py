"""The end of a long file, of lines or of rows of JSON: the last first, and no more is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pretrain.files import parse_json

BLOCK = 1 << 16  # bytes that are read first; then twice as many, as one line may be of any length


def lines_backwards(path: Path) -> Iterator[str]:
    """A file's lines, the last first, also one that has no end yet; none if there is no file."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        end, size, rest = file.seek(0, 2), BLOCK, b""
        while end:
            begin = max(0, end - size)
            file.seek(begin)
            rest, *lines = (file.read(end - begin) + rest).split(b"\n")
            yield from (line.decode(errors="replace") for line in reversed(lines))
            end, size = begin, 2 * size
        yield rest.decode(errors="replace")


def rows_backwards(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a metrics.jsonl, the newest first, without what is none, as while it is written;
    none if there is no file.
    """
    for line in lines_backwards(path):
        try:
            row = parse_json(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row
