"""The `hypnos` command.

A user's error is one line on stderr and exit status 2; Ctrl-C is 130; anything else is a bug and
keeps its traceback. Subcommands import torch and the like only when they run, so --help is quick.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from launch import __version__
from launch.commands import Command
from launch.commands.data import DATA
from launch.commands.doctor import doctor
from launch.commands.evaluate import evaluate
from launch.commands.export import export
from launch.commands.generate import generate
from launch.commands.import_model import import_model
from launch.commands.launch import LAUNCH
from launch.commands.plan import plan
from launch.commands.report import report
from launch.commands.reproduce import reproduce
from launch.commands.scale import scale
from launch.commands.serve import serve
from launch.commands.tokenizer import TOKENIZER
from launch.commands.train import train
from launch.output import write_anything
from pretrain.errors import UserError, storage_error
from tokenizer import TokenizerError

COMMANDS = (
    train, LAUNCH, evaluate, generate, serve, export, import_model, DATA, TOKENIZER, report,
    reproduce, scale, plan, doctor,
)  # fmt: skip


class Parser(argparse.ArgumentParser):
    """Prints errors in one line, and keeps the layout of examples in --help."""

    def __init__(self, **settings: object) -> None:
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(formatter_class=layout, **settings)  # type: ignore[arg-type]

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Like argparse, but settings may also follow flags: CONFIG --ranks 4 parallel.tp=2."""
        chosen, rest = self.parse_known_args(args, namespace)
        page: Parser = vars(chosen).pop("page", self)
        if rest and (not hasattr(chosen, "overrides") or any(r.startswith("-") for r in rest)):
            flags = [flag for action in page._actions for flag in action.option_strings]
            near = difflib.get_close_matches(rest[0].partition("=")[0], flags, n=1)
            fix = f"; did you mean {near[0]}?" if near else ""
            if "." in rest[0].partition("=")[0] and hasattr(chosen, "overrides"):
                fix = "; settings are written without dashes, as train.steps=10"
            page.error(f"unrecognized arguments: {' '.join(rest)}{fix}")
        if rest:
            chosen.overrides = [*chosen.overrides, *rest]
        return chosen

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"hypnos: error: {message} (`{self.prog} --help` shows an example)\n")


def make_parser() -> Parser:
    """The parser of the whole command line; its result has the chosen `command`."""
    parser = Parser(
        prog="hypnos",
        description="Pretraining of language models that sleep.",
        epilog="example:\n  hypnos train configs/depo-small.toml sleep.passes=2",
    )
    parser.add_argument("--version", action="version", version=f"hypnos {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for each in COMMANDS:
        each.register(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand; returns the exit status."""
    write_anything()
    try:
        given = vars(make_parser().parse_args(arguments))
        command: Command = given.pop("command")
        from launch.quiet import quiet

        quiet()
        status = command.run(**given)
        sys.stdout.flush()
        return status or 0
    except (UserError, TokenizerError) as error:
        print(f"hypnos: error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.status if isinstance(error, UserError) else 2
    except BrokenPipeError:  # the reader of our output (such as `| head`) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a full disk, a folder without write permission
        if error.filename is None:
            raise
        print(f"hypnos: error: {error.filename}: {error.strerror}", file=sys.stderr)
        return storage_error(error).status
    except KeyboardInterrupt:
        print("hypnos: interrupted", file=sys.stderr)
        return 130
