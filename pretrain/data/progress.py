"""Shows the progress of a long job: a live line on a terminal, occasional lines in a log."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.live import Live
from rich.text import Text

LOG_SECONDS = 10.0


class Progress:
    """Context manager; call `update` as often as you like. Writes to stderr."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._begin = time.monotonic()
        self._logged = self._begin
        console = Console(stderr=True)
        self._live = Live(console=console, refresh_per_second=4) if console.is_terminal else None
        self._line = self._last_logged = ""

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def update(self, files: str, documents: int, chars: int, tokens: int | None = None) -> None:
        """`files` in words ("3/80 files"), and what has been read or written so far."""
        now = time.monotonic()
        seconds = max(now - self._begin, 1e-9)
        done = f"{files}, {documents:,} documents, {chars / 1e6:,.1f} M characters"
        took = f"{seconds:,.0f} s"
        if tokens is not None:
            done += f", {tokens / 1e6:,.2f} M tokens"
            took += f", {tokens / seconds / 1e6:,.2f} M tokens/s"
        self._line = f"{self._title}: {done}, {took}"
        if self._live:
            self._live.update(Text(self._line))
        elif now - self._logged > LOG_SECONDS:
            self._logged, self._last_logged = now, self._line
            print(self._line, file=sys.stderr, flush=True)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._live:
            self._live.stop()
        elif kind is None and self._line != self._last_logged:
            print(self._line, file=sys.stderr, flush=True)
