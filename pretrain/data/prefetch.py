"""A thread that stays a few items ahead of the trainer."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")
PREFETCH_DEPTH = 4  # items


class Prefetcher(Generic[T]):
    """Calls `produce` in one thread, PREFETCH_DEPTH items ahead of `next()`; keeps the order."""

    def __init__(self, produce: Callable[[], T]) -> None:
        self._produce = produce
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
        self._items: deque[Future[T]] = deque(
            self._thread.submit(produce) for _ in range(PREFETCH_DEPTH)
        )
        self.wait_seconds = 0.0  # how long the last next() kept its caller waiting

    def next(self) -> T:
        """The next item. An exception of `produce` is raised here, in its turn, and by every later
        call.
        """
        began = time.perf_counter()
        item = self._items[0].result()
        self.wait_seconds = time.perf_counter() - began
        self._items.popleft()
        self._items.append(self._thread.submit(self._produce))
        return item

    def close(self) -> None:
        """End the thread after its current item; items that are ready are dropped."""
        self._thread.shutdown(cancel_futures=True)
