"""The arguments that say which documents to read, shared by `tokenizer train` and `data prepare`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pretrain.errors import UserError

if TYPE_CHECKING:
    from pretrain.data.corpus import Corpus


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources",
        metavar="SOURCE",
        nargs="*",
        help="folder of text, text file, .jsonl(.gz/.zst) or .parquet",
    )
    parser.add_argument(
        "--python",
        action="store_true",
        help="read this Python's own sources and documentation, some 10 MB, instead of SOURCE",
    )
    parser.add_argument(
        "--suffix",
        dest="suffixes",
        action="append",
        metavar=".EXT",
        help="suffix of files to read in folders; may be repeated (default: .py .txt .md .rst)",
    )
    parser.add_argument(
        "--text-field", metavar="NAME", default="text", help="key of the text in JSON and Parquet"
    )
    parser.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out text files that are not UTF-8, and list them",
    )


def make_corpus(arguments: argparse.Namespace) -> Corpus:
    """The documents that the arguments name."""
    if arguments.python == bool(arguments.sources):
        raise UserError("name the documents to read: either SOURCE ... or --python")

    from pretrain.data.corpus import TEXT_SUFFIXES, Corpus, PythonCorpus

    if arguments.python:
        return PythonCorpus()
    return Corpus(
        arguments.sources,
        suffixes=tuple(arguments.suffixes or TEXT_SUFFIXES),
        text_field=arguments.text_field,
        skip_bad=arguments.skip_bad,
    )
