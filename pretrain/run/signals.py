"""Handles signals at once in a thread, whatever the main thread does, and blocks them until then.

SIGUSR1 says that a run's time is up. It kills a process without a handler, so it is blocked from a
process's start (launch/__main__.py; launch/processes.py starts ranks with it blocked), and
delivered once `hearing` can handle it. A process cannot handle SIGKILL, so child processes that
must end with it ask the kernel to be killed too (`die_with_parent`).
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
    """Inside, signals call `heard` in a thread, even while the main thread waits in a collective.

    Blocked signals are delivered now; at the end they are blocked again, and the old handlers are
    restored. Only for a process's main thread, as Python handles signals nowhere else.

    Args:
        wait: seconds to wait at the end for a `heard` that is still running.
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
    """Those of some signals that this process was not started to ignore: `nohup` ignores SIGHUP, so
    that what it starts survives its terminal.
    """
    return [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]


def die_with_parent() -> None:
    """Has this process killed when its parent dies (Linux)."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
