"""Measures, in a thread, the peak memory of a call beyond what was in use before."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable

EVERY_S = 0.0005


def rise(held: Callable[[], int], run: Callable[[], object]) -> int:
    """Bytes by which `held` rises while `run` runs. held: bytes in use now, however counted."""
    gc.collect()
    before, most, done = held(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, held())
            time.sleep(EVERY_S)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return most - before
