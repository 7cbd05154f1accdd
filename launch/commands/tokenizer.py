"""hypnos tokenizer: train, encode, export."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from launch.commands import corpus
from launch.commands.values import positive
from pretrain.errors import UserError

if TYPE_CHECKING:
    from launch.commands import Commands


def register(commands: Commands) -> None:
    group = commands.add_parser(
        "tokenizer",
        help="train, try and export a sentencepiece tokenizer",
        description="A sentencepiece BPE tokenizer with byte fallback: text comes back from it exactly.",
        epilog="example:\n  hypnos tokenizer train --python --out runs/corpus/tokenizer.model",
    ).add_subparsers(metavar="COMMAND", required=True)

    parser = group.add_parser(
        "train",
        help="learn a tokenizer from documents",
        description="Learns a vocabulary from documents and writes a sentencepiece model.",
        epilog="example:\n  hypnos tokenizer train my-texts/ notes.jsonl.gz --vocab-size 16384 --out tokenizer.model",
    )
    corpus.add_arguments(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="model file to write"
    )
    parser.add_argument(
        "--vocab-size",
        type=positive,
        default=8192,
        metavar="COUNT",
        help="pieces to learn (default: 8192)",
    )
    parser.set_defaults(run=train)

    parser = group.add_parser(
        "encode",
        help="show the tokens of a text",
        description="Prints the ids of a text's tokens on one line.",
        epilog="example:\n  echo 'to be or not to be' | hypnos tokenizer encode tokenizer.model",
    )
    parser.add_argument("model", metavar="MODEL", help="file of `hypnos tokenizer train`")
    parser.add_argument(
        "file", metavar="FILE", nargs="?", type=Path, help="UTF-8 text (default: standard input)"
    )
    parser.set_defaults(run=encode)

    parser = group.add_parser(
        "export",
        help="write a Hugging Face fast tokenizer, and check that it is the same",
        description="Writes tokenizer.json and its configuration, then compares both tokenizers on sample texts.",
        epilog="example:\n  hypnos tokenizer export tokenizer.model exported/ README.md",
    )
    parser.add_argument("model", metavar="MODEL", help="file of `hypnos tokenizer train`")
    parser.add_argument("out", metavar="FOLDER", type=Path, help="folder to write to")
    parser.add_argument(
        "samples",
        metavar="FILE",
        nargs="*",
        type=Path,
        default=[],
        help="more UTF-8 texts to compare on",
    )
    parser.set_defaults(run=export)


def train(arguments: argparse.Namespace) -> None:
    documents = corpus.make_corpus(arguments)

    from tokenizer.train import train

    made = train((document.text for document in documents), arguments.out, arguments.vocab_size)
    for line in documents.skipped:
        print(f"left out: {line}", file=sys.stderr)
    print(f"{arguments.out}: {made.vocab_size:,} pieces, fingerprint {made.fingerprint[:12]}")


def encode(arguments: argparse.Namespace) -> None:
    from tokenizer.encode import Tokenizer

    print(*Tokenizer.load(arguments.model).encode(read_text(arguments.file)))


def export(arguments: argparse.Namespace) -> int:
    from tokenizer.encode import Tokenizer
    from tokenizer.export import export

    report = export(
        Tokenizer.load(arguments.model),
        arguments.out,
        [read_text(path) for path in arguments.samples],
    )
    print(f"{arguments.out}: {report}")
    return 0 if report.identical else 1


def read_text(path: Path | None) -> str:
    """A UTF-8 file, or standard input, exactly as it is."""
    try:
        return (sys.stdin.buffer.read() if path is None else path.read_bytes()).decode()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        place = path or "standard input"
        raise UserError(
            f"{place}: invalid UTF-8 at byte {error.start}; convert it to UTF-8"
        ) from None
