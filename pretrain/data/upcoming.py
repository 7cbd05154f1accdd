"""Looks up the next documents of lanes, many at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pretrain.data.order import Order

# documents of a lane looked up at once: few at first, since the trainer waits for those
MIN_AHEAD, MAX_AHEAD = 4, 64
AT_ONCE = 2048  # documents of all lanes together, within these bounds


class Upcoming:
    """Which documents lanes hold, asked for in sequence.

    Looking up one document costs as much as a hundred, so when a lane has none left, all lanes with
    less than half left are refilled too.

    Args:
        lengths: [documents] of each corpus: tokens, without EOS.
        lanes: those of this rank. batch: how many lanes there are in total.
    """

    def __init__(
        self, order: Order, lengths: Sequence[NDArray[np.uint32]], lanes: range, batch: int
    ) -> None:
        self._order, self._lengths = order, lengths
        self._lanes, self._batch = np.array(lanes), batch
        self._most = min(max(AT_ONCE // len(lanes), MIN_AHEAD), MAX_AHEAD)
        self._ahead = MIN_AHEAD
        # for each lane: the index of the first document found, those found, the last one asked for
        self._first = [0] * len(lanes)
        self._found: list[list[tuple[int, int, int]]] = [[] for _ in lanes]
        self._asked = [0] * len(lanes)

    def find(self, row: int, k: int) -> tuple[int, int, int]:
        """(corpus, number, length with EOS) of the k-th document of `lanes[row]`."""
        self._asked[row] = k
        at = k - self._first[row]
        if not 0 <= at < len(self._found[row]):
            self._look_up()
            at = 0
        return self._found[row][at]

    def _look_up(self) -> None:
        rows = [
            row
            for row, (first, asked) in enumerate(zip(self._first, self._asked, strict=True))
            if not first <= asked < first + (len(self._found[row]) + 1) // 2
        ]
        firsts = np.array([self._asked[row] for row in rows])
        numbers = firsts[:, None] + np.arange(self._ahead)  # [rows, ahead]
        draws = self._lanes[rows][:, None] + numbers * self._batch
        corpora, documents = self._order(draws.ravel())
        lengths = np.empty_like(documents)
        for corpus in np.unique(corpora).tolist():
            mine = corpora == corpus
            lengths[mine] = self._lengths[corpus][documents[mine]]
        found = list(zip(corpora.tolist(), documents.tolist(), (lengths + 1).tolist(), strict=True))
        for n, row in enumerate(rows):
            self._first[row] = self._asked[row]
            self._found[row] = found[n * self._ahead : (n + 1) * self._ahead]
        self._ahead = min(2 * self._ahead, self._most)
