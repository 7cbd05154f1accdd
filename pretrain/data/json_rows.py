"""Documents from JSON: one object per line, an array of objects, or a file with one object."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import IO, Any

from pretrain.data.compression import open_stream
from pretrain.data.formats import BOM, Document, Rejected
from pretrain.errors import shortened
from pretrain.files import parse_json

# bytes of one JSON object; a compressed file of a few KB could expand to fill the memory
MAX_LINE = 1 << 27
CHUNK = 1 << 16  # characters of an array read at once

_BETWEEN = re.compile(r"[ \t\r\n,]*")


def read_json_lines(path: Path, name: str, key: str) -> Iterator[Document | Rejected]:
    """The field `key` of every line that is not blank."""
    with open_stream(path) as file:
        for number, line in numbered_lines(file):
            yield _document(line, key, f"{path}, line {number}", f"{name}:{number}")


def read_json(path: Path, name: str, key: str) -> Iterator[Document | Rejected]:
    """A .json file, which may be JSON lines, an array of objects, or one object."""
    with open_stream(path) as file:
        head = [line for _, line in islice(numbered_lines(file), 2)]
    if head and head[0].lstrip().startswith(b"["):
        yield from _read_array(path, name, key)
    elif len(head) == 2 and _parses(head[0]):
        yield from read_json_lines(path, name, key)
    elif head:
        yield from _read_object(path, name, key)


def _read_array(path: Path, name: str, key: str) -> Iterator[Document | Rejected]:
    """The field `key` of every element."""
    with (
        open_stream(path) as file,
        # invalid UTF-8 becomes lone surrogates, so that only its element is rejected
        io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="") as text,
    ):
        for number, element in enumerate(_elements(text, path), 1):
            if number == 1 and not isinstance(element, dict):
                raise Rejected(
                    str(path),
                    "a JSON array, but not of objects",
                    fix=f'write objects with a field "{key}"',
                    is_metadata=True,
                )
            place = f"{path}, element {number}"
            yield json_document(element, key, place, f"{name}:{number}")


def _elements(text: IO[str], path: Path) -> Iterator[Any]:
    """The elements of a JSON array, read incrementally."""
    decode = json.JSONDecoder().raw_decode
    while (buffer := text.read(CHUNK)).isspace():
        pass
    at = buffer.index("[") + 1
    for number in count(1):
        while True:
            if between := _BETWEEN.match(buffer, at):
                at = between.end()
            if buffer.startswith("]", at):
                _check_end(buffer[at + 1 :], text, path)
                return
            try:
                value, at = decode(buffer, at)
                break
            except (ValueError, RecursionError) as error:  # malformed, or cut: read on
                more = "" if len(buffer) - at > MAX_LINE else text.read(max(CHUNK, len(buffer)))
                if not more:
                    raise Rejected(
                        f"{path}, element {number}",
                        "malformed JSON",
                        f": {getattr(error, 'msg', error)}",
                        fix="repair the array",
                    ) from None
                buffer, at = buffer[at:] + more, 0
        yield value


def _check_end(rest: str, text: IO[str], path: Path) -> None:
    """Rejects a file with anything after its array, such as a second one, which would go unread."""
    while rest.isspace() or not rest:
        if not (rest := text.read(CHUNK)):
            return
    fix = "merge the arrays into one, or put each into its own file"
    raise Rejected(str(path), "more JSON after the end of its array", fix=fix)


def _read_object(path: Path, name: str, key: str) -> Iterator[Document | Rejected]:
    """A file's only object; or JSON lines whose first line is damaged."""
    with open_stream(path) as file:
        content = file.read(MAX_LINE + 1)
    try:
        value = parse_json(content.removeprefix(BOM))
    except ValueError:
        yield from read_json_lines(path, name, key)
        return
    if not isinstance(value, dict) or key not in value:
        raise Rejected(
            str(path),
            f'neither JSON lines nor a JSON array of objects, and no field "{key}"',
            fix="name the field that holds the text (--text-field)",
            is_metadata=True,
        )
    yield json_document(value, key, str(path), name)


def numbered_lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """(number, line) of all lines that are not blank; lines that are too long are cut."""
    for number in count(1):
        line = file.readline(MAX_LINE + 1)
        if not line:
            return
        if number == 1:
            line = line.removeprefix(BOM)
        if line.strip():
            yield number, line
        rest = line
        while len(rest) > MAX_LINE and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE + 1)


def _parses(line: bytes) -> bool:
    try:
        parse_json(line)
    except ValueError:
        return False
    return True


def _document(line: bytes, key: str, place: str, source: str) -> Document | Rejected:
    """The document of one line."""
    if len(line) > MAX_LINE:
        return Rejected(place, f"more than {MAX_LINE >> 20} MiB", fix="split the text")
    try:
        return json_document(parse_json(line), key, place, source)
    except ValueError as error:
        kind, _, detail = str(error).partition(" at byte ")
        kind, _, cause = kind.partition(": ")
        detail = f" at byte {detail}" if detail else f": {cause}" if cause else ""
        return Rejected(place, kind, detail, fix="repair it")


def json_document(record: Any, key: str, place: str, source: str) -> Document | Rejected:
    """The text under `key` of one JSON object."""
    if not isinstance(record, dict) or key not in record:
        names = ", ".join(f'"{name}"' for name in record) if isinstance(record, dict) else ""
        return Rejected(
            place,
            f'no field "{key}"',
            f", only {shortened(names)}" if names else "",
            fix="name the field that holds the text (--text-field)",
        )
    text = record[key]
    if not isinstance(text, str):
        kind = f'"{key}" is {"null" if text is None else f"{_KINDS[type(text)]}, not text"}'
        return Rejected(place, kind, fix="repair it")
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can escape lone surrogates
        return Rejected(place, f'"{key}" holds a lone surrogate: invalid text', fix="repair it")
    return Document(text, source)


_KINDS = {
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "an array",
    dict: "an object",
}
