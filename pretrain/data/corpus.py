"""Documents from what a user has: folders of text, text files, .jsonl(.gz/.zst), .parquet, Python
itself.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from pretrain.data.formats import BadText, Document, read_json_lines, read_parquet, read_text
from pretrain.errors import UserError

TEXT_SUFFIXES = (".py", ".txt", ".md", ".rst")


@dataclass
class Corpus:
    """Documents of `sources` in a fixed order: the given order, and sorted paths within a folder.

    A source is a folder (its files with one of `suffixes`, at any depth, hidden ones left out) or a
    file. A file is read by its suffix: .jsonl, .jsonl.gz, .jsonl.zst (one JSON object a line) and
    .parquet hold one document per line or row, under the key `text_field`; any other file is one
    document of UTF-8 text.

    Empty texts are no documents. With `skip_bad`, a text file that cannot be read or is no UTF-8,
    and a pipe or a device, is left out and listed in `skipped`; without it, as for every damaged
    line, that is a UserError naming file and line.
    """

    sources: Sequence[str | Path]
    suffixes: Sequence[str] = TEXT_SUFFIXES
    text_field: str = "text"
    skip_bad: bool = False
    # one line for each file left out, filled while reading
    skipped: list[str] = field(default_factory=list)
    files: int = 0  # known when reading begins
    files_read: int = 0

    def __iter__(self) -> Iterator[Document]:
        self.skipped.clear()
        found = [
            (path, name)
            for source in self.sources
            for path, name in _files(Path(source), self.suffixes)
        ]
        self.files, self.files_read = len(found), 0
        documents = 0
        for path, name in found:
            try:
                for document in self._read(path, name):
                    documents += 1
                    yield document
            except BadText as error:
                if not self.skip_bad:
                    raise
                self.skipped.append(str(error))
            self.files_read += 1
        if not documents:
            raise UserError(
                f"no text in {', '.join(map(str, self.sources))}: the corpus is empty; give other sources"
            )

    def _read(self, path: Path, name: str) -> Iterator[Document]:
        if path.exists() and not path.is_file():
            raise BadText(f"{path}: a pipe or a device, which may have no end; leave it out")
        if path.name.endswith((".jsonl", ".jsonl.gz", ".jsonl.zst")):
            yield from read_json_lines(path, name, self.text_field)
        elif path.suffix == ".parquet":
            yield from read_parquet(path, name, self.text_field)
        else:
            yield from read_text(path, name)


class PythonCorpus(Corpus):
    """The Python sources and documentation text of the running interpreter: a corpus that every
    machine has.

    The standard library without installed packages, tests (some are damaged on purpose, some
    distributions leave them out) and character tables, then the language reference that `help()`
    shows, a document a topic. About 10 MB; it varies a little with the version of Python and how it
    was packaged.
    """

    LEFT_OUT = frozenset(
        {
            "site-packages",
            "dist-packages",
            "test",
            "tests",
            "idle_test",
            "lib2to3",
            "encodings",
            "pydoc_data",
        }
    )

    def __init__(self) -> None:
        library = Path(sysconfig.get_path("stdlib"))
        super().__init__(
            [path for path, _ in _files(library, TEXT_SUFFIXES, self.LEFT_OUT)], skip_bad=True
        )
        self._library = library

    def __iter__(self) -> Iterator[Document]:
        for document in super().__iter__():
            document.source = (
                f"python/{Path(document.source).relative_to(self._library).as_posix()}"
            )
            yield document
        try:
            topics: dict[str, str] = import_module("pydoc_data.topics").topics
        except ImportError:  # packaged apart by some distributions
            topics = {}
        for name in sorted(topics):
            if topics[name]:
                yield Document(topics[name], f"python/help/{name}")


def _files(
    source: Path, suffixes: Sequence[str], left_out: Collection[str] = ()
) -> Iterator[tuple[Path, str]]:
    """(file, the name its documents carry) for a file or for a folder's files in sorted order."""
    if source.is_file():
        yield source, str(source)
        return
    if not source.is_dir():
        raise UserError(
            f"{source}: no such file or folder; give a folder, a text file, .jsonl(.gz/.zst) or .parquet"
        )
    found = sorted(path.relative_to(source).as_posix() for path in _walk(source, left_out))
    chosen = [name for name in found if name.endswith(tuple(suffixes))]
    if not chosen:
        raise UserError(
            f"{source}: no {', '.join(suffixes)} file in this folder; name the suffixes to read"
        )
    for name in chosen:
        yield source / name, f"{source.name}/{name}"


def _walk(folder: Path, left_out: Collection[str]) -> Iterator[Path]:
    """Files below `folder` that are not hidden, without the folders named in `left_out`."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}")

    for top, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in left_out]
        yield from (Path(top, name) for name in names if not name.startswith("."))
