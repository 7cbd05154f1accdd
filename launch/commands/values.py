"""Types of command-line values, with errors that say what was expected."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from pretrain.errors import UserError


def path(text: str) -> Path:
    """A file or folder; expands `~`, since shells do not in --out=~/x.

    ArgumentTypeError: it is on an object store, where only training reads (`data.train`).
    """
    if "://" in text:
        copy = "use a local path, and copy it with e.g. `aws s3 cp --recursive`"
        raise argparse.ArgumentTypeError(f"{text} is not a local file or folder; {copy}")
    return Path(os.path.expanduser(text))


def new_file(text: str) -> Path:
    """A file to write, whose folder must exist: better to find out before the work."""
    file = path(text)
    if not file.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{file.parent} is not a folder; create it first")
    return file


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise _refused(text, "a whole number from 1")
    return int(text)


def port(text: str) -> int:
    """A TCP port."""
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 1 to 65535")
    return int(text)


def part(text: str) -> tuple[int, int]:
    """I/N: one of N parts, counted from 1."""
    number, _, parts = text.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N, with I from 1 to N")
    return int(number), int(parts)


def separator(text: str) -> str:
    r"""A separator of texts; \n, \r, \t and \\ stand for newline, CR, tab and backslash."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; give the text between two documents")
    meant = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}
    return re.sub(r"\\([nrt\\])", lambda found: meant[found[1]], text)


def seed(text: str) -> int:
    """A whole number from 0 that fits in 63 bits."""
    if not text.isdecimal() or int(text) >= 1 << 63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2^63 - 1")
    return int(text)


def whole(text: str) -> int:
    """A whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def number(text: str) -> float:
    """A finite number from 0."""
    return _number(text, float("inf"), "a number from 0")


def share(text: str) -> float:
    """A number from 0 to less than 1."""
    return _number(text, 1.0, "a share, from 0 to less than 1")


def json_object(text: str) -> dict[str, Any]:
    """An object in JSON."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object, as '{{\"a\": 1}}'")
    return value


def _number(text: str, below: float, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < below:
        raise _refused(text, what)
    return value


def _refused(text: str, what: str) -> argparse.ArgumentTypeError:
    """The error for a value; with a hint, since a setting after a multi-value flag looks like
    one.
    """
    fix = "; settings go before the flags" if "=" in text else ""
    return argparse.ArgumentTypeError(f"{text!r} is not {what}{fix}")


def read_text(path: Path | None) -> str:
    """The unchanged text of a UTF-8 file, or of standard input if there is no path."""
    try:
        return (sys.stdin.buffer.read() if path is None else path.read_bytes()).decode()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        place = path or "standard input"
        raise UserError(
            f"{place}: invalid UTF-8 at byte {error.start}; convert it to UTF-8"
        ) from None


def tell(line: str) -> None:
    """Prints a line beside a command's output: on stderr, flushed."""
    print(line, file=sys.stderr, flush=True)
