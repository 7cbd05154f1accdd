"""The subcommands: each has a name, a line of help, an example, its arguments, and a function.

One file per subcommand, or per group of them. Heavy imports are inside the functions, so that
--help is quick:

    @command(
        "eval",
        "held-out loss and accuracy of a run",
        description="Loss by window and by place in it, accuracy by task, at any N.",
        example="hypnos eval runs/depo-small --passes 1 2 4",
        arguments=[argument("run", metavar="RUN", type=path, help="a run's folder")],
    )
    def evaluate(run: Path) -> None: ...
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Argument:
    """One argument, as passed to `argparse.ArgumentParser.add_argument`."""

    flags: tuple[str, ...]
    settings: dict[str, Any]


def argument(*flags: str, **settings: Any) -> Argument:
    """Flags and settings of one argument; adds a default to its help."""
    if settings.get("default") not in (None, [], False) and "default:" not in settings["help"]:
        settings["help"] += " (default: %(default)s)"
    return Argument(flags, settings)


def overrides(help: str) -> Argument:
    """The settings that differ, as key=value."""
    return argument("overrides", metavar="key=value", nargs="*", default=[], help=help)


@dataclass(frozen=True)
class Command:
    """A subcommand. `run` takes the arguments by keyword and returns the exit status, None for
    0.
    """

    name: str
    help: str  # one line, for the list of commands
    description: str  # for its own page
    example: str
    arguments: Sequence[Argument]
    run: Callable[..., int | None]

    def register(self, commands: argparse._SubParsersAction[Any]) -> None:
        parser = _page(commands, self.name, self.help, self.description, self.example)
        for each in self.arguments:
            parser.add_argument(*each.flags, **each.settings)
        parser.set_defaults(command=self, page=parser)


@dataclass(frozen=True)
class Group:
    """A subcommand that has subcommands of its own."""

    name: str
    help: str
    description: str
    example: str
    commands: Sequence[Command]

    def register(self, commands: argparse._SubParsersAction[Any]) -> None:
        parser = _page(commands, self.name, self.help, self.description, self.example)
        within = parser.add_subparsers(metavar="COMMAND", required=True)
        for each in self.commands:
            each.register(within)


def command(
    name: str, help: str, *, description: str, example: str, arguments: Sequence[Argument]
) -> Callable[[Callable[..., int | None]], Command]:
    """Makes a function a subcommand."""
    return lambda run: Command(name, help, description, example, arguments, run)


def _page(
    commands: argparse._SubParsersAction[Any], name: str, help: str, description: str, example: str
) -> argparse.ArgumentParser:
    indented = example.replace("\n", "\n  ")
    page: argparse.ArgumentParser = commands.add_parser(
        name, help=help, description=description, epilog=f"example:\n  {indented}"
    )
    return page
