"""The fixed batches of text that a run is judged on: every document is read by itself, with S = 0.

Documents come in a shuffled order, the same for every run: shards hold them in the order of the
corpus, whose first files need not be like the others.

first   beginnings that fill a row:  | doc doc doc doc doc |     then second stretches, and so on
then    what fills none:             | doc EOS PAD | doc doc EOS PAD |   as training lays it out
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

Lengths = NDArray[np.uint32]  # [documents] tokens of each, EOS not among them
CHUNK = 1 << 16  # documents whose lengths are looked at together
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
    """`n` batches of `batch` rows, or fewer when the held-out documents end before.

    Rows of one full stretch of a document come first, so that where there are enough of them every
    position predicts and all windows are averaged over the same rows. The rest of every document,
    and whole documents that are shorter than a row, follow, each at the beginning of a window and
    followed by PAD. A last batch that is not full is filled up with rows of PAD alone.

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
    """The first stretch of each document that fills a row, then the second of each that has one."""
    for turn in count():
        found = False
        for document in _where(lengths, partial(_reaches, tokens=(turn + 1) * width)):
            # EOS follows the last token, so that it has a target
            found = True
            span = Span(0, document, turn * width, width, at=0, fresh=True)
            yield Row([span], carries=False)
        if not found:
            return


def _padded_rows(lengths: Lengths, windows: int, window: int) -> Iterator[Row]:
    """What fills no row: whole documents, then the ends of longer ones, none over two rows."""
    width = windows * window
    short = _where(lengths, lambda some: some < width)
    ends = _where(lengths, lambda some: (some >= width) & (some % width > 0))
    spans: list[Span] = []
    column = 0
    for document in chain(short, ends):
        tokens = int(lengths[document])
        length = tokens % width + 1  # with EOS
        taken = -(-length // window) * window  # to the next window
        if column + taken > width:
            yield Row(spans, carries=False)
            spans, column = [], 0
        spans.append(Span(0, document, tokens + 1 - length, length, at=column, fresh=True))
        column += taken
    if spans:
        yield Row(spans, carries=False)


def _reaches(lengths: Lengths, tokens: int) -> NDArray[np.bool_]:
    return lengths >= tokens


def _where(lengths: Lengths, chosen: Callable[[Lengths], NDArray[np.bool_]]) -> Iterator[int]:
    """The documents that are chosen by their lengths, shuffled; no more are looked at than are
    asked for. There may be a hundred million.
    """
    size = len(lengths)
    for first in range(0, size, CHUNK):
        places = np.arange(first, min(first + CHUNK, size))
        documents = permute(places, np.array(size), SHUFFLE)
        yield from documents[chosen(lengths[documents])].tolist()
