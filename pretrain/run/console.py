"""Shows training progress: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SLOW_S = 2.0  # an activity that takes longer is announced


@contextmanager
def said_if_slow(what: str, say: Callable[[str], None]) -> Iterator[None]:
    """Inside runs something that is usually fast; if it is not, one line says what it is."""
    timer = threading.Timer(SLOW_S, say, [f"{what} ..."])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class TrainProgress:
    """Progress on stderr; prints nothing if `shown` is False."""

    def __init__(self, name: str, steps: int, shown: bool) -> None:
        self._name, self._steps, self._shown = name, steps, shown
        self._start, self._begin = 0, time.monotonic()
        self._bar: Progress | None = None

    def begin(self, step: int) -> None:
        """Training starts or restarts after `step` steps."""
        self._start, self._begin = step, time.monotonic()
        console = Console(stderr=True)
        if self._bar is None and self._shown and console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task(self._name, total=self._steps, numbers="")
            self._bar.start()
        self.advance(step)

    def slow(self, what: str) -> AbstractContextManager[None]:
        """Inside runs something that is announced if it takes long."""
        return said_if_slow(what, self.say)

    def advance(self, step: int) -> None:
        """`step` steps are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def report(self, step: int, loss: float, tokens_per_s: float) -> None:
        """The numbers of a logging step."""
        if self._bar is not None:
            self._bar.update(self._task, numbers=f"loss {loss:.4f}  {tokens_per_s:,.0f} tokens/s")
        elif self._shown:
            per_step = (time.monotonic() - self._begin) / max(step - self._start, 1)
            left = int(per_step * (self._steps - step))
            eta = f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
            speed = f"{tokens_per_s:,.0f} tokens/s  eta {eta}"
            self.say(f"step {step}/{self._steps}  loss {loss:.4f}  {speed}")

    def say(self, line: str) -> None:
        """Prints a line of its own, above the bar."""
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        elif self._shown:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.stop()
