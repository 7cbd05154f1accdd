"""hypnos generate: text from a run, by a session that sleeps whenever its window is full."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from launch.commands.values import positive, seed, temperature

if TYPE_CHECKING:
    from launch.commands import Commands


def register(commands: Commands) -> None:
    parser = commands.add_parser(
        "generate",
        help="continue a prompt with a trained model that sleeps when its window is full",
        description="Continues a prompt with a run's newest checkpoint.",
        epilog='example:\n  hypnos generate runs/text-tiny --prompt "def main(" --tokens 300',
    )
    parser.add_argument("folder", metavar="RUN", type=Path, help="a run's folder")
    parser.add_argument("--prompt", metavar="TEXT", required=True, help="text to go on from")
    parser.add_argument(
        "--tokens",
        type=positive,
        metavar="COUNT",
        default=200,
        help="maximum new tokens (default: 200)",
    )
    parser.add_argument(
        "--temperature",
        type=temperature,
        metavar="X",
        default=0.8,
        help="0 takes the likeliest token (default: 0.8)",
    )
    parser.add_argument("--seed", type=seed, default=0, help="seed of the sampling (default: 0)")
    parser.add_argument(
        "--passes",
        type=positive,
        metavar="N",
        help="passes over a full window (default: as trained)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from pretrain.inference.session import generate_run

    pieces = generate_run(
        arguments.folder,
        arguments.prompt,
        arguments.tokens,
        arguments.temperature,
        arguments.seed,
        arguments.passes,
    )
    first = next(pieces, "")  # opens the run: an error comes before anything is printed
    print(arguments.prompt + first, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
