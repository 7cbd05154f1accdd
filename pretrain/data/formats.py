"""What a document is, which files hold rows and which are one text, and reading either kind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pretrain.data.compression import COMPRESSED, open_stream

TEXT_SUFFIXES = (".py", ".txt", ".md", ".rst")
ARROW_SUFFIXES = (".arrow", ".feather")
ROW_SUFFIXES = (
    ".jsonl", ".ndjson", ".json", ".parquet", *ARROW_SUFFIXES, ".csv", ".tsv", ".tar",
)  # fmt: skip
MAX_TEXT = 1 << 32  # bytes of a compressed text; a few KB could hold one that fills the memory


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


def read_text(path: Path, name: str) -> Iterator[Document]:
    """The whole file, line ends as they are."""
    with open_stream(path) as file:
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


def as_text(content: bytes) -> str:
    """Of UTF-8, without the byte order mark that some editors begin a file with."""
    return content.decode().removeprefix("\ufeff")
