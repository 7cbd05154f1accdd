"""Runs a command, or a part of one, on arbitrary input, and checks what must hold for any input:

it ends within some seconds, stays within some memory, writes nothing but what it is asked to, and
says what is wrong in one line that begins "hypnos: error:", with exit status 2.

HYPNOS_FUZZ=X in the environment makes every test here X times as long: 0.2 in `make test`.
"""

from __future__ import annotations

import faulthandler
import io
import os
import random
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from launch.cli import main
from parallel import mesh
from pretrain.errors import UserError
from tokenizer import TokenizerError

TIMES = float(os.environ.get("HYPNOS_FUZZ", 1))
SECONDS = 20  # many times what any input needs, as the machine may be busy
MEMORY = 1 << 30  # bytes beyond what the process has already mapped


def fuzz(examples: int) -> Callable[[Any], Any]:
    """Settings for a fuzz test with this many examples times HYPNOS_FUZZ."""
    allowed = [
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ]
    return settings(
        max_examples=max(1, round(examples * TIMES)), deadline=None, suppress_health_check=allowed
    )


def places(size: int, count: int) -> range:
    """About count x HYPNOS_FUZZ evenly spaced places in `size` bytes, different each time."""
    stride = max(1, int(size / (count * TIMES)))
    return range(random.randrange(stride), size, stride)


class Hang(BaseException):
    """A BaseException, so that only the test catches it."""


@contextmanager
def bounded(seconds: int = SECONDS, memory: int = MEMORY) -> Iterator[None]:
    """In this context, an alarm ends what hangs, and allocating too much is a MemoryError."""

    def rang(*_: object) -> None:
        raise Hang(f"not done after {seconds} seconds")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGALRM, rang)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + memory, hard))
    signal.alarm(seconds)
    # a call into C does not react to signals
    faulthandler.dump_traceback_later(3 * seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@dataclass
class Outcome:
    """What a command did."""

    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """Its error message; fails if that is not exactly one line, or too long to read."""
        assert self.status == 2, self
        assert self.err.startswith("hypnos: error: ") and self.err.endswith("\n"), self.err[:2000]
        assert len(self.err.splitlines()) == 1 and len(self.err) < 2000, self.err[:2000]
        assert "memory" not in self.err, self.err  # it tried to allocate it
        return self.err


def hypnos(*arguments: object) -> Outcome:
    """Runs a command in this process, bounded."""
    out, err = io.StringIO(), io.StringIO()
    with bounded(), redirect_stdout(out), redirect_stderr(err):
        status = main([str(argument) for argument in arguments])
    mesh.initialize()  # `hypnos train` leaves the world, and the next test needs one
    return Outcome(status, out.getvalue(), err.getvalue())


def refusal(call: Callable[[], object]) -> str | None:
    """The one-line error of a bounded call; None if it succeeds."""
    try:
        with bounded():
            call()
    except (UserError, TokenizerError) as error:
        assert len(str(error).splitlines()) == 1 and len(str(error)) < 2000, str(error)[:2000]
        return str(error)
    return None


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, with the content of files."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def damaged(whole: bytes) -> st.SearchStrategy[bytes]:
    """`whole` with up to three changes: bytes changed, stretches removed, inserted or doubled, or
    its end cut off.
    """
    size = len(whole)
    change = st.tuples(
        st.sampled_from(["flip", "set", "cut", "insert", "double", "end"]),
        st.integers(0, max(0, size - 1)) | st.integers(max(0, size - 600), max(0, size - 1)),
        st.binary(min_size=1, max_size=8),
    )

    def apply(changes: list[tuple[str, int, bytes]]) -> bytes:
        content = whole
        for what, at, new in changes:
            old = content[at : at + len(new)]
            content = (
                content[:at]
                + {
                    "flip": bytes(a ^ b for a, b in zip(old[:1], new, strict=False))
                    + content[at + 1 :],
                    "set": new + content[at + len(new) :],
                    "cut": content[at + len(new) :],
                    "insert": new + content[at:],
                    "double": old + content[at:],
                    "end": b"",
                }[what]
            )
        return content

    return st.lists(change, min_size=1, max_size=3).map(apply)
