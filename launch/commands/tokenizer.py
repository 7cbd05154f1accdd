"""hypnos tokenizer: train, encode, export."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launch.commands import Group, argument, command, corpus
from launch.commands.values import path, positive, read_text, tell
from pretrain.errors import UserError

MODEL = argument(
    "model",
    metavar="MODEL",
    type=path,
    help="file of `hypnos tokenizer train`, or Hugging Face folder of a model",
)


@command(
    "train",
    "learn a tokenizer from documents",
    description="Learns a vocabulary from documents and writes a sentencepiece model.",
    example="hypnos tokenizer train my-texts/ notes.jsonl.gz --vocab-size 16384 "
    "--out tokenizer.model",
    arguments=[
        *corpus.ARGUMENTS,
        argument(
            "--out",
            type=path,
            required=True,
            metavar="FILE",
            help="model file to write; must not exist",
        ),
        argument(
            "--vocab-size", type=positive, default=8192, metavar="COUNT", help="pieces to learn"
        ),
    ],
)
def train(out: Path, vocab_size: int, **source: Any) -> None:
    documents = corpus.make_corpus(**source)
    if out.exists():  # shards and runs may depend on exactly this one
        raise UserError(f"{out}: already exists; use it, give another name, or remove it")

    from tokenizer.train import train

    made = train(_announced(corpus.read_texts(documents), vocab_size), out, vocab_size)
    corpus.print_tally(documents)
    print(f"{out}: {made.vocab_size:,} pieces, fingerprint {made.fingerprint[:12]}")


def _announced(texts: Iterator[str], vocab_size: int) -> Iterator[str]:
    """The same texts; then announces the training, during which sentencepiece is silent."""
    yield from texts
    print(f"learning {vocab_size:,} pieces", file=sys.stderr, flush=True)


@command(
    "encode",
    "show the tokens of a text",
    description="Prints the ids of a text's tokens on one line.",
    example="echo 'to be or not to be' | hypnos tokenizer encode tokenizer.model",
    arguments=[
        MODEL,
        argument(
            "file",
            metavar="FILE",
            nargs="?",
            type=path,
            help="UTF-8 text (default: standard input)",
        ),
    ],
)
def encode(model: Path, file: Path | None) -> None:
    from tokenizer.encode import Tokenizer

    print(*Tokenizer.load(model).encode(read_text(file)))


@command(
    "export",
    "write a Hugging Face fast tokenizer, and check that it is equal",
    description="Writes tokenizer.json and its configuration, then compares both tokenizers "
    "on sample texts.",
    example="hypnos tokenizer export tokenizer.model exported/ README.md",
    arguments=[
        MODEL,
        argument("out", metavar="FOLDER", type=path, help="folder to write to"),
        argument(
            "samples",
            metavar="FILE",
            nargs="*",
            type=path,
            default=[],
            help="additional UTF-8 texts for the comparison",
        ),
    ],
)
def export(model: Path, out: Path, samples: list[Path]) -> int:
    from pretrain.run.console import said_if_slow

    with said_if_slow(f"exporting {model}", tell):
        from tokenizer.encode import Tokenizer
        from tokenizer.export import export

        report = export(Tokenizer.load(model), out, [read_text(sample) for sample in samples])
    print(f"{out}: {report}")
    return 0 if report.identical else 1


TOKENIZER = Group(
    "tokenizer",
    "train, try and export a sentencepiece tokenizer",
    description="A sentencepiece BPE tokenizer with byte fallback: decoding is lossless.",
    example="hypnos tokenizer train --python --out runs/corpus/tokenizer.model",
    commands=(train, encode, export),
)
