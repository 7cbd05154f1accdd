"""The `hypnos` command on ranks of which the last one fails or the first is slow."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from launch.cli import main
from parallel.passes import Pass
from pretrain.model import sleep
from pretrain.run import resume, step
from pretrain.tasks.source import TaskSource

UNIT = (1, 2)  # window and pass in which the failure happens


def _break_in_the_unit(how: Callable[[], Any]) -> None:
    one_pass, calls = sleep.one_pass, 0

    def breaking(reader: Any, p: Pass, *arguments: Any) -> Any:
        nonlocal calls
        calls += (p.window, p.number) == UNIT
        if calls == 3:
            how()
        return one_pass(reader, p, *arguments)

    sleep.one_pass = step.one_pass = breaking


def _lose_rows() -> None:
    take = TaskSource.next
    TaskSource.next = lambda self: take(self).rows(0, self.rows // 2)  # type: ignore[method-assign]


def _verify_slowly(seconds: float) -> None:
    """Makes the first rank as slow as a large checkpoint on a slow disk would."""
    take = resume._take_folder

    def slow(*arguments: Any) -> Any:
        time.sleep(seconds)
        return take(*arguments)

    resume._take_folder = slow


def _raise() -> None:
    raise RuntimeError("a cosmic ray")


WAYS: dict[str, Callable[[], Any]] = {
    "whole": lambda: None,
    "dies": lambda: _break_in_the_unit(lambda: os.kill(os.getpid(), signal.SIGKILL)),
    "hangs": lambda: _break_in_the_unit(lambda: time.sleep(3600)),
    "stops": lambda: _break_in_the_unit(lambda: os.kill(os.getpid(), signal.SIGSTOP)),
    "raises": lambda: _break_in_the_unit(_raise),
    "loses rows": _lose_rows,
    "verifies slowly": lambda: _verify_slowly(18),
}


def train(how: str, *arguments: str) -> None:
    """Runs one rank of `hypnos train ARGUMENTS`."""
    first, last = 0, int(os.environ["WORLD_SIZE"]) - 1
    if int(os.environ["RANK"]) == (first if how == "verifies slowly" else last):
        WAYS[how]()
    sys.exit(main(["train", *arguments]))
