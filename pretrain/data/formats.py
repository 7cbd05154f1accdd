"""What a document is, which files hold rows and which are one text, and reading either kind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from pretrain.data.compression import COMPRESSED, open_stream

TEXT_SUFFIXES = (".py", ".txt", ".md", ".rst")
ARROW_SUFFIXES = (".arrow", ".feather")
ROW_SUFFIXES = (
    ".jsonl", ".ndjson", ".json", ".parquet", *ARROW_SUFFIXES, ".csv", ".tsv", ".tar",
)  # fmt: skip
MAX_TEXT = 1 << 32  # bytes of a compressed text; a few KB could hold one that fills the memory
CHUNK = 1 << 20  # bytes of a text that is split that are read at once
BOM = "\ufeff".encode()  # the byte order mark


@dataclass
class Document:
    """One text that is kept whole, and where it came from."""

    text: str
    source: str


class LeftOut(NamedTuple):
    """A member of a file that need not be a document; it is counted by kind."""

    kind: str
    place: str


class Rejected(Exception):
    """What holds no text that can be read: yielded for a row, raised for a file or its rest.

    place         file and row, for the user
    kind          the few words by which it is counted
    detail        what else a message says of this one
    fix           what to do about it
    is_metadata   a file that need not hold documents; in a folder it is left out
    """

    def __init__(
        self, place: str, kind: str, detail: str = "", *, fix: str, is_metadata: bool = False
    ) -> None:
        super().__init__(f"{place}: {kind}{detail}")
        self.place, self.kind, self.fix, self.is_metadata = place, kind, fix, is_metadata


def split_suffix(name: str) -> tuple[str, str]:
    """The suffix that tells a file's format, and that of its compression: (".jsonl", ".gz")."""
    path = Path(name.lower())
    if path.suffix in COMPRESSED:
        return Path(path.stem).suffix, path.suffix
    return path.suffix, ""


def read_text(path: Path, name: str, separator: str = "") -> Iterator[Document | Rejected]:
    """The whole file, line ends as they are; or its pieces between separators."""
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
    """What `str.split` makes of a text of UTF-8, without holding more than a piece of it.

    Pieces of white space alone are empty documents. What follows the last separator is none, if it
    is of that kind: a separator may end every document.
    """
    blank = False  # the piece before
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
    """What `bytes.split` makes of a file behind its byte order mark. UTF-8 is split alike as bytes
    and as characters: none begins within another.
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
        # a separator may have begun at the end
        searched = max(0, len(rest) - len(separator) + 1)
        if len(rest) > MAX_TEXT:
            raise Rejected(
                place, f"more than {MAX_TEXT >> 30} GiB of text without a separator", fix="split it"
            )
    yield bytes(rest)


def as_text(content: bytes) -> str:
    """Of UTF-8, without the byte order mark that some editors begin a file with."""
    return content.decode().removeprefix("\ufeff")
