"""Reads a long file from its end: lines or rows of JSON, the last first, and no more than asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pretrain.files import parse_json

BLOCK = 1 << 16  # bytes read first; then twice as many each time, since a line may be long


def lines_backwards(path: Path) -> Iterator[str]:
    """A file's lines, the last first, even if it has no newline yet; none if there is no file."""
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
    """The rows of a metrics.jsonl, the newest first, without invalid lines, such as one that is
    being written; none if there is no file.
    """
    for line in lines_backwards(path):
        try:
            row = parse_json(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row
