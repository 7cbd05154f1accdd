"""Signals that are heard at once, whatever the main thread does, and none before somebody hears it.

SIGUSR1 says that a run's time is up. It ends a process that has no handler for it, so it is held
from a process's first moment (launch/__main__.py; launch/processes.py, whose ranks are born so),
and comes when `hearing` can answer it. SIGKILL to a process that has started others cannot be
heard at all: those that are to end with it ask the kernel for theirs (`die_with_parent`).
"""

from __future__ import annotations

import ctypes
import signal
import socket
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded before any fork


@contextmanager
def hearing(
    numbers: Collection[signal.Signals], heard: Callable[[signal.Signals], None], wait: float
) -> Iterator[None]:
    """Inside, signals call `heard` in a thread: also while the main thread waits in a collective.

    Those that were held come now; at the end they are held again, and handlers are as before. Only
    in a process's main thread, as Python takes signals nowhere else.

    Args:
        wait: seconds at the end for a `heard` that goes on.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def listen() -> None:
        while received := reader.recv(1):  # b"" when `writer` is shut
            if received[0] in numbers:
                heard(signal.Signals(received[0]))
        reader.close()

    thread = threading.Thread(target=listen, name="signals", daemon=True)
    thread.start()
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    handlers = {number: signal.signal(number, lambda *_: None) for number in numbers}
    held = signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        writer.close()
        thread.join(wait)


def not_ignored(*numbers: signal.Signals) -> list[signal.Signals]:
    """Those of some signals that whoever has started this process lets it hear: `nohup` hides that
    the terminal has gone (SIGHUP), and what it starts is to go on.
    """
    return [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]


def die_with_parent() -> None:
    """No life of this process without the one who started it (Linux)."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
