"""Signals are handled whatever the main thread does, and early ones are not lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import launch.__main__
from launch import cli
from pretrain.run.signals import hearing

ROOT = Path(__file__).parents[2]


def held() -> set[int]:
    """The signals blocked in this thread and in processes that it starts."""
    return signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.fixture
def mask() -> Iterator[None]:
    """Restores the signal mask afterwards."""
    before = held()
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.mark.usefixtures("mask")
def test_what_was_held_is_heard_in_a_thread() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
    heard, each = list[tuple[signal.Signals, str]](), threading.Event()

    def hear(number: signal.Signals) -> None:
        heard.append((number, threading.current_thread().name))
        each.set()

    with hearing([signal.SIGUSR1], hear, wait=10):
        assert each.wait(10) and signal.SIGUSR1 not in held()
        each.clear()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert each.wait(10)
    assert heard == [(signal.SIGUSR1, "signals")] * 2
    assert signal.SIGUSR1 in held() and signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


@pytest.mark.usefixtures("mask")
@pytest.mark.parametrize(
    ("arguments", "is_held"), [("train x", True), ("launch rank", True), ("eval x", False)]
)
def test_what_may_be_timed_holds_it_from_the_first_moment(
    arguments: str, is_held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["hypnos", *arguments.split()])
    monkeypatch.setattr(cli, "main", lambda: int(signal.SIGUSR1 in held()))
    assert launch.__main__.main() == is_held


def test_time_that_is_up_before_training_begins_is_no_failure() -> None:
    """The signal is pending before the program starts."""

    def timed() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        os.kill(os.getpid(), signal.SIGUSR1)

    train = [sys.executable, "-m", "launch", "train", "configs/depo-small.toml"]
    done = subprocess.run(train, cwd=ROOT, preexec_fn=timed, capture_output=True, text=True)
    assert done.returncode == 75, done.stderr
    assert done.stderr == "stopped by SIGUSR1 before the first step; there is nothing to save\n"
