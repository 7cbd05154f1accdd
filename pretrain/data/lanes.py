"""Which tokens of which documents each row of a batch holds. Lengths only: no token is read here.

Row b of every global batch is lane b. Draw j of the order goes to lane j mod B, so lane b's k-th
document is draw b + k * B, and where a lane stands is two numbers. A document of n tokens is n + 1
with its EOS. | is where a window begins:

    "isolate"   lane 0:  | doc .... doc | doc EOS PAD | doc doc doc | doc EOS PAD PAD |
    "stitch"    lane 0:  | doc EOS doc doc doc EOS doc doc doc doc EOS doc EOS doc |

Every row predicts something. In "isolate" an EOS predicts nothing, so it is never left alone for
the next row: a document whose last token fills a row ends with that row, which predicts its EOS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

# (documents of the lane that are used up, tokens used of the one after them)
Cursor = tuple[int, int]
# k -> (corpus, number, length with EOS) of the lane's k-th document
Find = Callable[[int], tuple[int, int, int]]


@dataclass(frozen=True)
class Span:
    """A stretch of one document in a row."""

    corpus: int
    document: int
    start: int  # tokens of the document before it
    length: int
    at: int  # column of the row
    fresh: bool  # the fast weights are zero here


@dataclass(frozen=True)
class Row:
    """One row: its spans in order, and whether its last document's S goes on in the lane's next
    row.
    """

    spans: list[Span]
    carries: bool


def isolate(
    find: Find, cursor: Cursor, windows: int, window: int, carry: bool
) -> tuple[Row, Cursor]:
    """The lane's next row of `windows` windows, in which every document begins a window.

    A document longer than what is left of the row goes on in the next row, unless that is its EOS
    alone. With `carry` its fast weights do too; without, its rest is read afresh.
    """
    used_up, used = cursor
    spans: list[Span] = []
    column, width = 0, windows * window
    while column < width:
        corpus, document, length = find(used_up)
        taken = min(length - used, width - column)
        spans.append(Span(corpus, document, used, taken, column, fresh=used == 0 or not carry))
        column += -(-taken // window) * window  # to the next window
        used += taken
        if used >= length - 1:
            used_up, used = used_up + 1, 0
    return Row(spans, carries=carry and used > 0), (used_up, used)


def stitch(find: Find, cursor: Cursor, width: int) -> tuple[Row, Cursor]:
    """The lane's next row of `width` tokens and the one token after it, which its last position
    predicts.

    Documents follow one another without a gap and the row starts with zero fast weights, as
    sequences do in ordinary pretraining. The extra token is the first of the lane's next row.
    """
    used_up, used = cursor
    spans: list[Span] = []
    column = 0
    while column < width:
        corpus, document, length = find(used_up)
        taken = min(length - used, width - column)
        spans.append(Span(corpus, document, used, taken, column, fresh=column == 0))
        column += taken
        used += taken
        if used == length:
            used_up, used = used_up + 1, 0
    corpus, document, _ = find(used_up)
    spans.append(Span(corpus, document, used, 1, column, fresh=False))
    return Row(spans, carries=False), (used_up, used)
