"""hypnos data: prepare, merge, verify, stats."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.commands import Group, argument, command, corpus
from launch.commands.values import number, part, path, positive, share, tell
from pretrain.data.store import Place, place
from pretrain.errors import UserError

if TYPE_CHECKING:
    from pretrain.data.index import Index

PREPARED = argument(
    "folder",
    metavar="FOLDER",
    type=place,
    help="folder that `hypnos data prepare` wrote, or its URL, such as s3://bucket/prefix",
)


@command(
    "prepare",
    "write token shards",
    description="Tokenises whole documents into FOLDER/train and FOLDER/heldout.",
    example="hypnos data prepare my-texts/ notes.jsonl.gz --tokenizer tokenizer.model --out shards"
    "\n"
    r"hypnos data prepare input.txt --separator '\n\n' --tokenizer tokenizer.model --out shards",
    arguments=[
        *corpus.ARGUMENTS,
        argument(
            "--tokenizer",
            type=path,
            required=True,
            metavar="MODEL",
            help="file of `hypnos tokenizer train`, or Hugging Face folder of a model",
        ),
        argument(
            "--out",
            type=path,
            required=True,
            metavar="FOLDER",
            help="folder to write; must not exist",
        ),
        argument(
            "--holdout",
            type=share,
            default=0.01,
            metavar="SHARE",
            help="share of documents held out",
        ),
        argument(
            "--shard-tokens",
            type=positive,
            metavar="COUNT",
            default=50_000_000,
            help="tokens per shard",
        ),
        argument(
            "--workers",
            type=positive,
            metavar="COUNT",
            help="cores to use (default: all)",
        ),
        argument(
            "--part",
            type=part,
            metavar="I/N",
            help="write only part I of N (from 1/N to N/N), for `hypnos data merge`: on several "
            "machines, or in a Slurm array; an existing part is not written again",
        ),
    ],
)
def prepare(
    tokenizer: Path,
    out: Path,
    holdout: float,
    shard_tokens: int,
    workers: int | None,
    part: tuple[int, int] | None,
    **source: Any,
) -> None:
    documents = corpus.make_corpus(**source)

    from pretrain.data.prepare import prepare, prepare_part
    from tokenizer.encode import Tokenizer

    how: dict[str, Any] = {
        "holdout": holdout,
        "shard_tokens": shard_tokens,
        "workers": workers or 0,
    }
    model = Tokenizer.load(tokenizer)
    if part is None:
        made = prepare(documents, model, out, **how)
        corpus.print_tally(documents)
        print_splits(out, made)
        return
    folder = prepare_part(documents, model, out, part, **how)
    if folder is None:
        print(f"{out}: part {part[0]} of {part[1]} already exists")
        return
    corpus.print_tally(documents)
    following = f"hypnos data merge {shlex.quote(str(out))}"
    print(f"{folder}: written; when all {part[1]} parts are written: {following}")


@command(
    "merge",
    "merge the parts that `hypnos data prepare --part` wrote into one corpus",
    description="Renames the shards of all parts and joins their indexes: the result is, byte for "
    "byte, what one `hypnos data prepare` would have written.",
    example="hypnos data merge shards",
    arguments=[
        argument("folder", metavar="FOLDER", type=path, help="--out of `data prepare --part`")
    ],
)
def merge(folder: Path) -> None:
    from pretrain.data.prepare import merge
    from pretrain.run.console import said_if_slow

    with said_if_slow(f"merging the parts in {folder}", tell):
        made = merge(folder)
    print_splits(folder, made)


def print_splits(folder: Path, made: dict[str, Index]) -> None:
    """Prints how much is in each split."""
    for split, index in made.items():
        print(f"{folder / split}: {index.samples:,} documents, {index.tokens:,} tokens")


@command(
    "verify",
    "read every byte of prepared shards and compare with the index",
    description="Checks a corpus that `hypnos data prepare` wrote, or one split of it.",
    example="hypnos data verify runs/corpus/shards",
    arguments=[PREPARED],
)
def verify(folder: Place) -> None:
    from pretrain.data.shards import strays_beside, verify
    from pretrain.run.console import said_if_slow

    with said_if_slow(f"reading every byte of {folder}", tell):
        problems = verify(folder)
    for line in problems[1:]:
        print(line, file=sys.stderr)
    if problems:
        raise UserError(problems[0])
    for line in strays_beside(folder):
        print(f"note: {line}", file=sys.stderr)
    print(f"{folder}: every byte matches the index")


@command(
    "stats",
    "numbers of documents and tokens, their lengths, and the shares of a mixture",
    description="Describes corpora that `hypnos data prepare` wrote, or one split of each. With "
    "--weights, prints what share of the training tokens each would contribute.",
    example="hypnos data stats web books --weights 0.9 0.1 --tokens 5e9",
    arguments=[
        argument(
            "folders",
            metavar="FOLDER",
            type=place,
            nargs="+",
            help="folder that `data prepare` wrote, or its URL",
        ),
        argument(
            "--weights",
            type=number,
            nargs="+",
            metavar="WEIGHT",
            help="weight of each folder, as in data.train",
        ),
        argument("--tokens", type=number, default=1e9, metavar="COUNT", help="tokens to train on"),
    ],
)
def stats(folders: list[Place], weights: list[float] | None, tokens: float) -> None:
    from dataclasses import fields

    from rich.console import Console
    from rich.table import Table

    from pretrain.data.mixture import mixture
    from pretrain.data.shards import stats
    from pretrain.run.console import said_if_slow

    if weights is not None and (len(weights) != len(folders) or min(weights) <= 0):
        raise UserError("--weights: give a number above 0 for each folder")
    console = Console()
    for folder in folders:
        with said_if_slow(f"reading {folder}", tell):
            splits = stats(folder)
        title = str(folder) if len(folders) > 1 else None
        table = Table("split", *(split.split for split in splits), title=title)
        for name in [field.name for field in fields(splits[0])][1:]:
            numbers = (written(getattr(split, name)) for split in splits)
            table.add_row(name.replace("_", " "), *numbers)
        console.print(table)
    if weights is not None:
        for folder, share in zip(folders, mixture(folders, weights, tokens), strict=True):
            print(f"{folder}: {share} in {tokens:,.0f} tokens")


DATA = Group(
    "data",
    "turn documents into token shards, verify and describe them",
    description="Prepares corpora for training: webdataset tars of tokens, with an index.",
    example="hypnos data prepare --python --tokenizer tokenizer.model --out runs/corpus/shards",
    commands=(prepare, merge, verify, stats),
)


def written(value: str | int | float) -> str:
    """A number with commas; text unchanged."""
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"
