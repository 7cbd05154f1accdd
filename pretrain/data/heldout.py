"""The fixed batches of text that a run is judged on: every document is read by itself, with S = 0.

first   beginnings that fill a row:  | doc doc doc doc doc |     then second stretches, and so on
then    what fills none:             | doc EOS PAD | doc doc EOS PAD |   as training lays it out
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pretrain.data.batch import Batch
from pretrain.data.index import find_split
from pretrain.data.lanes import Row, Span
from pretrain.data.reader import Shards
from pretrain.data.rows import RowReader
from tokenizer.encode import Tokenizer

Lengths = NDArray[np.uint32]  # [documents] tokens of each, EOS not among them


def heldout_batches(
    path: str | Path, tokenizer: Tokenizer, *, window: int, windows: int, batch: int, n: int
) -> list[Batch]:
    """`n` batches of `batch` rows, or fewer when the held-out documents end before.

    Rows of one full stretch of a document come first, so that where there are enough of them every
    position predicts and all windows are averaged over the same rows. The rest of every document,
    and whole documents that are shorter than a row, follow, each at the beginning of a window and
    followed by PAD. A last batch that is not full is filled up with rows of PAD alone.
    """
    shards = Shards(find_split(path, "heldout"), tokenizer)
    made = chain(
        _full_rows(shards.lengths, windows * window), _padded_rows(shards.lengths, windows, window)
    )
    rows = list(islice(made, n * batch))
    rows += [Row([], carries=False)] * (-len(rows) % batch)
    reader = RowReader([shards], tokenizer.eos, tokenizer.pad, windows, window)
    batches = [
        reader.isolated(range(batch), rows[first : first + batch])
        for first in range(0, len(rows), batch)
    ]
    shards.close()
    return batches


def _full_rows(lengths: Lengths, width: int) -> Iterator[Row]:
    """The first stretch of each document that fills a row, then the second of each that has one."""
    stretches = lengths // width  # EOS follows the last token, so that it has a target
    for turn in range(int(stretches.max())):
        for document in (stretches > turn).nonzero()[0].tolist():
            span = Span(0, document, turn * width, width, at=0, fresh=True)
            yield Row([span], carries=False)


def _padded_rows(lengths: Lengths, windows: int, window: int) -> Iterator[Row]:
    """What fills no row: whole documents, then the ends of longer ones, none over two rows."""
    width = windows * window
    rest = lengths % width
    whole_first = np.argsort(lengths >= width, kind="stable")
    spans: list[Span] = []
    column = 0
    for document in whole_first[rest[whole_first] > 0].tolist():
        length = int(rest[document]) + 1  # with EOS
        taken = -(-length // window) * window  # to the next window
        if column + taken > width:
            yield Row(spans, carries=False)
            spans, column = [], 0
        start = int(lengths[document]) + 1 - length
        spans.append(Span(0, document, start, length, at=column, fresh=True))
        column += taken
    if spans:
        yield Row(spans, carries=False)
