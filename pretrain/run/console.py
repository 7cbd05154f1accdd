"""How far training is: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class TrainProgress:
    """Says what it is told on stderr; nothing at all if `shown` is False."""

    def __init__(self, name: str, start: int, steps: int, shown: bool) -> None:
        self.start, self.steps, self.shown = start, steps, shown
        self._begin = time.monotonic()
        console = Console(stderr=True)
        self._bar: Progress | None = None
        if shown and console.is_terminal:
            columns = (
                TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}"), TimeRemainingColumn(),
            )  # fmt: skip
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task(name, total=steps, completed=start, numbers="")
            self._bar.start()

    def advance(self, step: int) -> None:
        """`step` steps are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def report(self, step: int, loss: float, tokens_per_s: float) -> None:
        """The numbers of a logging step."""
        if self._bar is not None:
            self._bar.update(self._task, numbers=f"loss {loss:.4f}  {tokens_per_s:,.0f} tokens/s")
        elif self.shown:
            left = (
                (time.monotonic() - self._begin) / max(step - self.start, 1) * (self.steps - step)
            )
            eta = f"{int(left) // 3600}:{int(left) // 60 % 60:02}:{int(left) % 60:02}"
            self.say(
                f"step {step}/{self.steps}  loss {loss:.4f}  {tokens_per_s:,.0f} tokens/s  eta {eta}"
            )

    def say(self, line: str) -> None:
        """A line of its own, above the bar."""
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        elif self.shown:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
