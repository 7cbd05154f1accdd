"""Runs a command, or a part of one, on input that may be anything, and holds it to what every input
may do:

end within some seconds, take no more than some memory, write nothing but what it is asked to, and
tell what is wrong in one line that begins "hypnos: error:", with exit status 2.

HYPNOS_FUZZ=X in the environment makes every test here X times as long: 0.2 every day, 10 by night.
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
SECONDS = 20  # many times what any of the inputs needs, for a machine that is busy
MEMORY = 1 << 30  # bytes beyond what the process has mapped already


def fuzz(examples: int) -> Callable[[Any], Any]:
    """Settings of a fuzz test with so many examples, or HYPNOS_FUZZ times as many."""
    allowed = [
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ]
    return settings(
        max_examples=max(1, round(examples * TIMES)), deadline=None, suppress_health_check=allowed
    )


def places(size: int, count: int) -> range:
    """About count x HYPNOS_FUZZ places in `size` bytes, evenly apart, others each time."""
    stride = max(1, int(size / (count * TIMES)))
    return range(random.randrange(stride), size, stride)


class Hang(BaseException):
    """Nothing but the test catches it."""


@contextmanager
def bounded(seconds: int = SECONDS, memory: int = MEMORY) -> Iterator[None]:
    """Inside, an alarm ends what hangs, and allocating too much is a MemoryError."""

    def rang(*_: object) -> None:
        raise Hang(f"not done after {seconds} seconds")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGALRM, rang)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + memory, hard))
    signal.alarm(seconds)
    # a call into C hears no signal
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
        """The one line of its error; fails if it is another number of lines, or too long to be
        read.
        """
        assert self.status == 2, self
        assert self.err.startswith("hypnos: error: ") and self.err.endswith("\n"), self.err[:2000]
        assert len(self.err.splitlines()) == 1 and len(self.err) < 2000, self.err[:2000]
        assert "memory" not in self.err, self.err  # it tried to take it
        return self.err


def hypnos(*arguments: object) -> Outcome:
    """A command in this process, bounded."""
    out, err = io.StringIO(), io.StringIO()
    with bounded(), redirect_stdout(out), redirect_stderr(err):
        status = main([str(argument) for argument in arguments])
    mesh.initialize()  # `hypnos train` leaves the world, and the next test needs one
    return Outcome(status, out.getvalue(), err.getvalue())


def refusal(call: Callable[[], object]) -> str | None:
    """What a bounded call says is wrong, in one line; None if it did its work."""
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
    """`whole` with up to three bytes changed, stretches cut out, put in or doubled, or its end cut
    off.
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
