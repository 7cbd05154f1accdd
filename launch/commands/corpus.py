"""The arguments that name documents, shared by `tokenizer train` and `data prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from launch.commands import argument
from launch.commands.values import path
from pretrain.errors import UserError

if TYPE_CHECKING:
    from pretrain.data.corpus import Corpus

ARGUMENTS = (
    argument(
        "sources",
        metavar="SOURCE",
        nargs="*",
        type=path,
        help="folder of text, text file, .jsonl(.gz/.zst) or .parquet",
    ),
    argument(
        "--python",
        action="store_true",
        help="read this Python's own sources and documentation, some 10 MB, instead of SOURCE",
    ),
    argument(
        "--suffix",
        dest="suffixes",
        action="append",
        metavar=".EXT",
        help="suffix of files to read in folders; may be repeated (default: .py .txt .md .rst)",
    ),
    argument(
        "--text-field", metavar="NAME", default="text", help="key of the text in JSON and Parquet"
    ),
    argument(
        "--skip-bad",
        action="store_true",
        help="leave out text files that are not UTF-8, and list them",
    ),
)


def make_corpus(
    *,
    sources: list[Path],
    python: bool,
    suffixes: list[str] | None,
    text_field: str,
    skip_bad: bool,
) -> Corpus:
    """The documents that the arguments name."""
    if python == bool(sources):
        raise UserError("name the documents to read: either SOURCE ... or --python")

    from pretrain.data.corpus import TEXT_SUFFIXES, Corpus, PythonCorpus

    if python:
        return PythonCorpus()
    return Corpus(
        sources,
        suffixes=tuple(suffixes or TEXT_SUFFIXES),
        text_field=text_field,
        skip_bad=skip_bad,
    )
