"""Arguments that name documents, shared by `tokenizer train` and `data prepare`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from launch.commands import argument
from launch.commands.values import path, separator
from pretrain.data.suffixes import COMPRESSED, ROW_SUFFIXES, TEXT_SUFFIXES
from pretrain.errors import UserError

if TYPE_CHECKING:
    from pretrain.data.corpus import Corpus

ARGUMENTS = (
    argument(
        "sources",
        metavar="SOURCE",
        nargs="*",
        type=path,
        help=f"folder or file: {', '.join(ROW_SUFFIXES)} or text; also {', '.join(COMPRESSED)}",
    ),
    argument(
        "--python",
        action="store_true",
        help="instead of SOURCE, read this Python's own sources and documentation, about 10 MB",
    ),
    argument(
        "--suffix",
        dest="suffixes",
        action="append",
        metavar=".EXT",
        help="suffix of files to read in folders; may be repeated (default: "
        f"{' '.join(TEXT_SUFFIXES + ROW_SUFFIXES)})",
    ),
    argument(
        "--separator",
        metavar="TEXT",
        type=separator,
        help="split text files into documents at each TEXT, for example '<|endoftext|>', '\\n' "
        "(lines) or '\\n\\n' (paragraphs) (default: a file is one document)",
    ),
    argument("--text-field", metavar="NAME", default="text", help="key, or column, of the text"),
    argument(
        "--skip-bad",
        action="store_true",
        help="leave out rows and files without readable text, and count them by kind",
    ),
)


def make_corpus(
    *,
    sources: list[Path],
    python: bool,
    suffixes: list[str] | None,
    text_field: str,
    skip_bad: bool,
    separator: str | None,
) -> Corpus:
    """The documents that the arguments name."""
    if python == bool(sources):
        raise UserError("name the documents to read: either SOURCE ... or --python")
    if python and separator:
        raise UserError("--separator splits SOURCE files; leave it out with --python")

    from pretrain.data.corpus import Corpus, PythonCorpus

    if python:
        return PythonCorpus()
    return Corpus(
        sources,
        suffixes=suffixes,
        text_field=text_field,
        skip_bad=skip_bad,
        separator=separator or "",
    )


def read_texts(documents: Corpus) -> Iterator[str]:
    """The texts, with a progress line while they are read."""
    from pretrain.data.progress import Progress

    count = chars = 0
    with Progress("read") as progress:
        for document in documents:
            yield document.text
            count, chars = count + 1, chars + len(document.text)
            progress.update(f"{documents.files_read}/{documents.files} files", count, chars)
        progress.update(f"{documents.files_read}/{documents.files} files", count, chars)


def print_tally(documents: Corpus) -> None:
    """Prints to stderr what was read and what was left out."""
    for line in documents.tally.lines():
        print(line, file=sys.stderr)
