"""Documents of a user's corpus: folders and files of text or of rows, or Python's own sources."""

from __future__ import annotations

import errno
import os
import stat
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from pretrain.data.arrow import read_arrow
from pretrain.data.compression import Damaged, TooLarge
from pretrain.data.folder import Tally, find_files
from pretrain.data.formats import Document, LeftOut, Rejected, read_text
from pretrain.data.json_rows import read_json, read_json_lines
from pretrain.data.parquet import read_parquet
from pretrain.data.suffixes import ARROW_SUFFIXES, TEXT_SUFFIXES, split_suffix
from pretrain.data.tables import DELIMITERS, read_table
from pretrain.data.tar import read_tar
from pretrain.errors import UserError

# OS errors that concern one file; all others are errors of the disk or the network.
OF_A_FILE = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.EINVAL}


class Entry(NamedTuple):
    """A file of a corpus."""

    path: Path
    name: str  # the `source` of its documents
    in_folder: bool  # found in a folder, not given as a source itself


@dataclass
class Corpus:
    """Documents of `sources` in a fixed order: the given order, and sorted paths within a folder.

    A source is a file or a folder: its files with one of `suffixes` (None: all formats below), at
    any depth. A file is read by its suffix, in any case, and decompressed if one of `COMPRESSED`
    follows: `ROW_SUFFIXES` hold one document per line, element or row, under `text_field` (.tar,
    one per member); any other file is one document of UTF-8 text. With a `separator`, such files
    and the texts in tars are split at it, and each piece is a document.

    Empty texts are not documents. A row or a file without readable text is a UserError that names
    it; with `skip_bad` it is left out. `tally` counts what is read and left out.
    """

    sources: Sequence[str | Path]
    suffixes: Sequence[str] | None = None
    text_field: str = "text"
    skip_bad: bool = False
    separator: str = ""
    tally: Tally = field(default_factory=Tally)  # filled while reading
    files: int = 0  # set when reading begins
    files_read: int = 0

    def __iter__(self) -> Iterator[Document]:
        self.tally = Tally()
        entries = self.find()
        self.files, self.files_read = len(entries), 0
        documents = 0
        for document in self.read(entries):
            documents += 1
            yield document
        if not documents:
            raise self.is_empty()

    def find(self) -> list[Entry]:
        """The files of all sources, in order; `tally` counts files there that are not read.

        A file found through two sources, such as a folder and a subfolder of it, is read once; a
        source that is named twice is read twice.
        """
        entries = []
        found_in: dict[tuple[str, str], str] = {}
        folder = lru_cache(1)(os.path.realpath)
        for source in self.sources:
            real, in_folder = os.path.realpath(source), os.path.isdir(source)
            for path, name in self._find(Path(source)):
                if found_in.setdefault((folder(path.parent), path.name), real) == real:
                    entries.append(Entry(path, name, in_folder))
                else:
                    self.tally.leave_out("file", "another source already contains it", path)
        return entries

    def read(self, entries: Iterable[Entry]) -> Iterator[Document]:
        """The documents of these files."""
        for entry in entries:
            yield from self._file(entry)
            self.files_read += 1

    def is_empty(self) -> UserError:
        """The error that there is no document, and why."""
        why = "; ".join(self.tally.lines())
        return UserError(
            f"no text in {', '.join(map(str, self.sources))}: the corpus is empty; "
            f"give other sources{f' ({why})' if why else ''}"
        )

    def _find(self, source: Path) -> list[tuple[Path, str]]:
        return find_files(source, self.suffixes, self.tally, skip_bad=self.skip_bad)

    def _file(self, entry: Entry) -> Iterator[Document]:
        """The documents of one file."""
        path, name, in_folder = entry
        rows = 0
        try:
            for row in self._rows(path, name):
                rows += 1
                if isinstance(row, LeftOut):
                    self.tally.leave_out("member", row.kind, row.place)
                elif isinstance(row, Rejected):
                    self._reject("row", row)
                elif row.text:
                    yield row
                else:
                    self.tally.leave_out("row", "empty text", row.source)
        except Rejected as error:
            if error.is_metadata and in_folder:
                self.tally.leave_out("file", error.kind, path)
            else:
                self._reject("file", error)
        except (Damaged, TooLarge) as error:
            after = f"{path}, after {rows:,} rows" if rows else str(path)
            self._reject("file", _unreadable(after, error))
        except OSError as error:
            if error.errno not in OF_A_FILE:
                raise UserError(
                    f"{path}: cannot be read: {error.strerror}; check the disk or the network"
                ) from None
            self._reject("file", _unreadable(str(path), error))
        else:
            if not rows:
                self.tally.leave_out("file", "empty", path)
        if rows:
            self.tally.add_file("".join(split_suffix(path.name)), self.separator)

    def _rows(self, path: Path, name: str) -> Iterator[Document | Rejected | LeftOut]:
        """Documents and bad rows of one file, by its suffix."""
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise Rejected(
                str(path), "a pipe or a device", ", which may have no end", fix="leave it out"
            )
        if not status.st_size:  # an empty file is valid in any format, without documents
            return iter(())
        suffix, compression = split_suffix(path.name)
        if suffix in (".jsonl", ".ndjson"):
            return read_json_lines(path, name, self.text_field)
        if suffix == ".json":
            return read_json(path, name, self.text_field)
        if suffix in DELIMITERS:
            return read_table(path, name, self.text_field, DELIMITERS[suffix])
        if suffix == ".tar":
            return read_tar(path, name, self.text_field, self.separator)
        if suffix == ".parquet" or suffix in ARROW_SUFFIXES:
            kind = "Parquet" if suffix == ".parquet" else "Arrow"
            if compression:
                raise Rejected(str(path), f"{kind} inside {compression}", fix="decompress it")
            read = read_parquet if suffix == ".parquet" else read_arrow
            return read(path, name, self.text_field)
        return read_text(path, name, self.separator)

    def _reject(self, unit: str, what: Rejected) -> None:
        """Leaves out a row, a file or the rest of one; without `skip_bad`, raises UserError."""
        if not self.skip_bad:
            raise UserError(f"{what}; {what.fix}, or leave out such {unit}s with --skip-bad")
        self.tally.leave_out(unit, what.kind, what.place)


def _unreadable(place: str, error: Exception) -> Rejected:
    """Rejects a whole file that cannot be read."""
    if isinstance(error, TooLarge):
        return Rejected(place, str(error), fix="read it on a machine with more memory")
    if isinstance(error, Damaged):
        return Rejected(
            place, "cannot be decompressed", f": {error}", fix="copy it again if it is damaged"
        )
    reason = getattr(error, "strerror", None)
    return Rejected(place, f"cannot be read: {reason}", fix="check that it exists and is readable")


class PythonCorpus(Corpus):
    """The running Python's own sources and documentation: a corpus that every machine has.

    The standard library without installed packages, tests (some are damaged on purpose, and some
    distributions leave them out) and character tables, then the language reference that `help()`
    shows, one document per topic. About 10 MB; it varies a little with Python's version and
    packaging.
    """

    LEFT_OUT = (
        "site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "encodings",
        "pydoc_data",
    )  # fmt: skip
    REFERENCE = "python/help"

    def __init__(self) -> None:
        self._library = Path(sysconfig.get_path("stdlib"))
        super().__init__([self._library], suffixes=TEXT_SUFFIXES, skip_bad=True)

    def _find(self, source: Path) -> list[tuple[Path, str]]:
        found = find_files(source, self.suffixes, Tally(), skip_bad=True, without=self.LEFT_OUT)
        return [(path, f"python/{path.relative_to(source).as_posix()}") for path, _ in found]

    def find(self) -> list[Entry]:
        """The library's files, and an entry for the language reference."""
        return [*super().find(), Entry(self._library, self.REFERENCE, False)]

    def _file(self, entry: Entry) -> Iterator[Document]:
        if entry.name != self.REFERENCE:
            yield from super()._file(entry)
            return
        try:
            topics: dict[str, str] = import_module("pydoc_data.topics").topics
        except ImportError:  # some distributions package it separately
            topics = {}
        for name in sorted(topics):
            if topics[name]:
                yield Document(topics[name], f"{self.REFERENCE}/{name}")
