"""The fixed held-out batches on which a run is evaluated: each document on its own, from S = 0.

Documents come in a shuffled order, the same for every run: shards have them in the order of the
corpus, whose first files may not be typical.

first   stretches that fill a row:   | doc doc doc doc doc |     first ones, then second ones, ...
then    what fills no row:           | doc EOS PAD | doc doc EOS PAD |   laid out as in training
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, count, islice

import numpy as np
from numpy.typing import NDArray

from pretrain.data.batch import Batch
from pretrain.data.index import find_split
from pretrain.data.lanes import Row, Span
from pretrain.data.order import key, permute, round_keys
from pretrain.data.reader import Shards
from pretrain.data.rows import RowReader
from pretrain.data.splits import Files
from pretrain.data.store import Place
from tokenizer.encode import Tokenizer

Lengths = NDArray[np.uint32]  # [documents] tokens of each, without EOS
CHUNK = 1 << 16  # documents whose lengths are read at once
SHUFFLE = round_keys(key("heldout"))


def heldout_batches(
    path: str | Place,
    tokenizer: Tokenizer,
    *,
    window: int,
    windows: int,
    batch: int,
    n: int,
    files: Files | None = None,
    checks: bool = True,
) -> list[Batch]:
    """`n` batches of `batch` rows, or fewer if there are not enough held-out documents.

    Rows that are one full stretch of a document come first, so that, if there are enough of them,
    every position is scored and all windows are averaged over the same rows. Then come the rests of
    documents and whole documents shorter than a row, each at the beginning of a window and followed
    by PAD. An incomplete last batch is filled up with rows of PAD.

    files, checks: see `Shards`.
    """
    shards = Shards(find_split(path, "heldout"), tokenizer, files, checks=checks)
    made = chain(
        _full_rows(shards.lengths, windows * window), _padded_rows(shards.lengths, windows, window)
    )
    rows = list(islice(made, n * batch))
    rows += [Row([], carries=False)] * (-len(rows) % batch)
    reader = RowReader([shards], tokenizer.eos, tokenizer.pad, windows, window)
    reader.ahead(rows)
    batches = [
        reader.isolated(range(batch), rows[first : first + batch])
        for first in range(0, len(rows), batch)
    ]
    shards.close()
    return batches


def _full_rows(lengths: Lengths, width: int) -> Iterator[Row]:
    """First stretches that fill a row, of all documents; then second ones, and so on."""
    for turn in count():
        found = False
        for document in _where(lengths, partial(np.less_equal, (turn + 1) * width)):
            # EOS follows the last token, so that token has a target
            found = True
            span = Span(0, document, turn * width, width, at=0, fresh=True)
            yield Row([span], carries=False)
        if not found:
            return


def _padded_rows(lengths: Lengths, windows: int, window: int) -> Iterator[Row]:
    """Rows of what fills no row: whole documents, then ends of longer ones, each within one row."""
    width = windows * window
    short = _where(lengths, lambda some: some < width)
    ends = _where(lengths, lambda some: (some >= width) & (some % width > 0))
    spans: list[Span] = []
    column = 0
    for document in chain(short, ends):
        tokens = int(lengths[document])
        length = tokens % width + 1  # with EOS
        taken = -(-length // window) * window  # rounded up to whole windows
        if column + taken > width:
            yield Row(spans, carries=False)
            spans, column = [], 0
        spans.append(Span(0, document, tokens + 1 - length, length, at=column, fresh=True))
        column += taken
    if spans:
        yield Row(spans, carries=False)


def _where(lengths: Lengths, chosen: Callable[[Lengths], NDArray[np.bool_]]) -> Iterator[int]:
    """The documents chosen by their lengths, shuffled, lazily: there may be a hundred million."""
    size = len(lengths)
    for first in range(0, size, CHUNK):
        places = np.arange(first, min(first + CHUNK, size))
        documents = permute(places, np.array(size), SHUFFLE)
        yield from documents[chosen(lengths[documents])].tolist()
