"""Documents, or why there is none; and how text files are read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from pretrain.data.compression import open_stream
from pretrain.data.suffixes import split_suffix

MAX_TEXT = 1 << 32  # bytes of a decompressed text; a few KB could expand to fill the memory
CHUNK = 1 << 20  # bytes read at once of a text that is split
BOM = "\ufeff".encode()  # the byte order mark


@dataclass
class Document:
    """One text, and where it came from."""

    text: str
    source: str


class LeftOut(NamedTuple):
    """A member of a file that is no document, without being an error; counted by kind."""

    kind: str
    place: str


class Rejected(Exception):
    """A row or file without readable text: yielded for a row, raised for a file or its rest.

    place         file and row, for the user
    kind          a few words, by which it is counted
    detail        further words for the message about this one
    fix           what to do about it
    is_metadata   a file that need not hold documents; in a folder it is left out
    """

    def __init__(
        self, place: str, kind: str, detail: str = "", *, fix: str, is_metadata: bool = False
    ) -> None:
        super().__init__(f"{place}: {kind}{detail}")
        self.place, self.kind, self.fix, self.is_metadata = place, kind, fix, is_metadata


def read_text(path: Path, name: str, separator: str = "") -> Iterator[Document | Rejected]:
    """The whole file, with line ends unchanged; or the pieces between separators."""
    with open_stream(path) as file:
        if separator:
            yield from split_text(file, separator, str(path), name)
            return
        content = file.read(MAX_TEXT + 1) if split_suffix(path.name)[1] else file.read()
    if len(content) > MAX_TEXT and split_suffix(path.name)[1]:
        raise Rejected(str(path), f"more than {MAX_TEXT >> 30} GiB of text", fix="split it")
    try:
        if content:
            yield Document(as_text(content), name)
    except UnicodeDecodeError as error:
        raise Rejected(
            str(path), "invalid UTF-8", f" at byte {error.start}", fix="convert the file to UTF-8"
        ) from None


def split_text(
    file: IO[bytes], separator: str, place: str, source: str
) -> Iterator[Document | Rejected]:
    """Splits UTF-8 text like `str.split`, without holding more than one piece in memory.

    Pieces of white space alone are empty documents, except after the last separator: a separator
    may end every document.
    """
    blank = False  # whether the previous piece was
    for number, piece in enumerate(_pieces(file, separator.encode(), place), 1):
        if blank:
            yield Document("", f"{source}:{number - 1}")
        try:
            text = piece.decode()
        except UnicodeDecodeError as error:
            blank = False
            yield Rejected(
                f"{place}, piece {number}",
                "invalid UTF-8",
                f" at its byte {error.start}",
                fix="convert the file to UTF-8",
            )
            continue
        blank = not text.strip()
        if not blank:
            yield Document(text, f"{source}:{number}")


def _pieces(file: IO[bytes], separator: bytes, place: str) -> Iterator[bytes]:
    """Splits a file, without its byte order mark, like `bytes.split`. For UTF-8 that equals a split
    by characters, since no character's bytes begin inside another.
    """
    rest = bytearray(file.read(len(BOM)).removeprefix(BOM))
    searched = 0
    while chunk := file.read(CHUNK):
        rest += chunk
        first = 0
        while (end := rest.find(separator, max(first, searched))) >= 0:
            yield bytes(rest[first:end])
            first = end + len(separator)
        del rest[:first]
        # a separator may begin at the end of what was read
        searched = max(0, len(rest) - len(separator) + 1)
        if len(rest) > MAX_TEXT:
            raise Rejected(
                place, f"more than {MAX_TEXT >> 30} GiB of text without a separator", fix="split it"
            )
    yield bytes(rest)


def as_text(content: bytes) -> str:
    """Decodes UTF-8, without the byte order mark that some editors write."""
    return content.decode().removeprefix("\ufeff")
