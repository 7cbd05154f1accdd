"""hypnos data: prepare, verify, stats."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from launch.commands import corpus
from launch.commands.values import positive, share
from pretrain.errors import UserError

if TYPE_CHECKING:
    from launch.commands import Commands


def register(commands: Commands) -> None:
    group = commands.add_parser(
        "data",
        help="turn documents into token shards, verify and describe them",
        description="A corpus as training reads it: webdataset tars of tokens, with an index.",
        epilog="example:\n  hypnos data prepare --python --tokenizer tokenizer.model --out runs/corpus/shards",
    ).add_subparsers(metavar="COMMAND", required=True)

    parser = group.add_parser(
        "prepare",
        help="write token shards",
        description="Tokenises documents, kept whole, into FOLDER/train and FOLDER/heldout.",
        epilog="example:\n  hypnos data prepare my-texts/ notes.jsonl.gz --tokenizer tokenizer.model --out shards",
    )
    corpus.add_arguments(parser)
    parser.add_argument(
        "--tokenizer", required=True, metavar="MODEL", help="file of `hypnos tokenizer train`"
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="folder to write; must not be there",
    )
    parser.add_argument(
        "--holdout",
        type=share,
        default=0.01,
        metavar="SHARE",
        help="share of documents held out (default: 0.01)",
    )
    parser.add_argument(
        "--shard-tokens",
        type=positive,
        metavar="COUNT",
        default=50_000_000,
        help="tokens per shard (default: 50000000)",
    )
    parser.set_defaults(run=prepare)

    parser = group.add_parser(
        "verify",
        help="read every byte of prepared shards and compare with the index",
        description="Checks a corpus that `hypnos data prepare` wrote, or one split of it.",
        epilog="example:\n  hypnos data verify runs/corpus/shards",
    )
    parser.add_argument(
        "folder", metavar="FOLDER", type=Path, help="what `hypnos data prepare` wrote"
    )
    parser.set_defaults(run=verify)

    parser = group.add_parser(
        "stats",
        help="how many documents and tokens, and how long they are",
        description="Describes a corpus that `hypnos data prepare` wrote, or one split of it.",
        epilog="example:\n  hypnos data stats runs/corpus/shards",
    )
    parser.add_argument(
        "folder", metavar="FOLDER", type=Path, help="what `hypnos data prepare` wrote"
    )
    parser.set_defaults(run=stats)


def prepare(arguments: argparse.Namespace) -> None:
    documents = corpus.make_corpus(arguments)

    from pretrain.data.shards import prepare
    from tokenizer.encode import Tokenizer

    made = prepare(
        documents,
        Tokenizer.load(arguments.tokenizer),
        arguments.out,
        holdout=arguments.holdout,
        shard_tokens=arguments.shard_tokens,
    )
    for line in documents.skipped:
        print(f"left out: {line}", file=sys.stderr)
    for split, index in made.items():
        print(f"{arguments.out / split}: {index.samples:,} documents, {index.tokens:,} tokens")


def verify(arguments: argparse.Namespace) -> None:
    from pretrain.data.shards import verify

    problems = verify(arguments.folder)
    for line in problems[1:]:
        print(line, file=sys.stderr)
    if problems:
        raise UserError(problems[0])
    print(f"{arguments.folder}: every byte is as the index says")


def stats(arguments: argparse.Namespace) -> None:
    from dataclasses import fields

    from rich.console import Console
    from rich.table import Table

    from pretrain.data.shards import stats

    splits = stats(arguments.folder)
    table = Table("split", *(split.split for split in splits))
    for name in [field.name for field in fields(splits[0])][1:]:
        table.add_row(name.replace("_", " "), *(written(getattr(split, name)) for split in splits))
    Console().print(table)


def written(value: str | int | float) -> str:
    """A number with commas, a text as it is."""
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"
