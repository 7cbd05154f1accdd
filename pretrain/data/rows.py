"""Reads the tokens of planned rows and lays them out as a Batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pretrain.data.batch import IGNORE, Batch
from pretrain.data.lanes import Row, Span
from pretrain.data.reader import Shards


class RowReader:
    """Fills rows from the shards; caches each lane's current document, to read a long one once."""

    def __init__(
        self, corpora: Sequence[Shards], eos: int, pad: int, windows: int, window: int
    ) -> None:
        self._corpora, self._eos, self._pad = corpora, eos, pad
        self._windows, self._window = windows, window
        # lane -> ((corpus, document), its ids with EOS)
        self._open: dict[int, tuple[tuple[int, int], NDArray[Any]]] = {}

    def ahead(self, rows: Sequence[Row]) -> None:
        """Announce that rows will soon be read."""
        for row in rows:
            for span in row.spans:
                self._corpora[span.corpus].ahead(span.document)

    def isolated(self, lanes: Sequence[int], rows: Sequence[Row]) -> Batch:
        """Rows of `lanes.isolate`: documents are padded to the end of their window and predict only
        their own tokens.
        """
        tokens, targets, starts = self._blank(len(rows))
        valid = np.zeros(tokens.shape, bool)
        for b, (lane, row) in enumerate(zip(lanes, rows, strict=True)):
            for span in row.spans:
                ids = self._ids(lane, span)
                stop = span.start + span.length
                tokens[b, span.at : span.at + span.length] = ids[span.start : stop]
                valid[b, span.at : span.at + span.length] = True
                # one fewer where the document ends: EOS predicts nothing
                following = ids[span.start + 1 : stop + 1]
                targets[b, span.at : span.at + len(following)] = following
                starts[b, span.at // self._window] = span.fresh
        return _batch(tokens, targets, valid, starts, [row.carries for row in rows])

    def stitched(self, lanes: Sequence[int], rows: Sequence[Row]) -> Batch:
        """Rows of `lanes.stitch`: every position predicts the next, across document ends too."""
        tokens, targets, starts = self._blank(len(rows))
        for b, (lane, row) in enumerate(zip(lanes, rows, strict=True)):
            parts = [
                self._ids(lane, span)[span.start : span.start + span.length] for span in row.spans
            ]
            stream = np.concatenate(parts)  # [T + 1]
            tokens[b], targets[b] = stream[:-1], stream[1:]
        starts[:, 0] = True
        return _batch(tokens, targets, np.ones(tokens.shape, bool), starts, [False] * len(rows))

    def _blank(self, rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """tokens [rows, T] of PAD, targets [rows, T] of IGNORE, starts [rows, W] of False."""
        shape = (rows, self._windows * self._window)
        return (
            np.full(shape, self._pad),
            np.full(shape, IGNORE),
            np.zeros((rows, self._windows), bool),
        )

    def _ids(self, lane: int, span: Span) -> NDArray[Any]:
        """[tokens + 1] the ids of a span's document, with EOS."""
        name = (span.corpus, span.document)
        if lane not in self._open or self._open[lane][0] != name:
            ids = self._corpora[span.corpus].document(span.document)
            with_eos = np.empty(len(ids) + 1, ids.dtype)
            with_eos[:-1], with_eos[-1] = ids, self._eos
            self._open[lane] = name, with_eos
        return self._open[lane][1]


def _batch(
    tokens: NDArray[np.int64],
    targets: NDArray[np.int64],
    valid: NDArray[np.bool_],
    starts: NDArray[np.bool_],
    carries: list[bool],
) -> Batch:
    arrays = (tokens, targets, valid, starts, np.array(carries, bool))
    return Batch(*(torch.from_numpy(array) for array in arrays))
