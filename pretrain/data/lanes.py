"""Plans which tokens of which documents each row of a batch holds, from lengths alone.

Row b of every global batch is lane b. Draw j of the order goes to lane j mod B, so lane b's k-th
document is draw b + k * B, and the position of a lane is two numbers. A document of n tokens has
length n + 1 with its EOS. | marks the beginning of a window:

    "isolate"   lane 0:  | doc .... doc | doc EOS PAD | doc doc doc | doc EOS PAD PAD |
    "stitch"    lane 0:  | doc EOS doc doc doc EOS doc doc doc doc EOS doc EOS doc |

Every row has a scored position. In "isolate" nothing is predicted after an EOS, so an EOS is never
left alone for the next row: a document whose last token fills a row ends there, with EOS as the
last target.
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
    start: int  # how many of the document's tokens come before it
    length: int
    at: int  # first column in the row
    fresh: bool  # starts with zero fast weights


@dataclass(frozen=True)
class Row:
    """One row: its spans in order, and whether its last document's S continues in the next row."""

    spans: list[Span]
    carries: bool


def isolate(
    find: Find, cursor: Cursor, windows: int, window: int, carry: bool
) -> tuple[Row, Cursor]:
    """The lane's next row of `windows` windows, in which every document begins a window.

    A document longer than the rest of the row continues in the next row, unless only its EOS is
    left. With `carry` its fast weights continue too; without, its rest starts from S = 0.
    """
    used_up, used = cursor
    spans: list[Span] = []
    column, width = 0, windows * window
    while column < width:
        corpus, document, length = find(used_up)
        taken = min(length - used, width - column)
        spans.append(Span(corpus, document, used, taken, column, fresh=used == 0 or not carry))
        column += -(-taken // window) * window  # the start of the next window
        used += taken
        if used >= length - 1:
            used_up, used = used_up + 1, 0
    return Row(spans, carries=carry and used > 0), (used_up, used)


def stitch(find: Find, cursor: Cursor, width: int) -> tuple[Row, Cursor]:
    """The lane's next row of `width` tokens, plus the one token after it, its last target.

    Documents are concatenated without gaps and the row starts with zero fast weights, as usual in
    pretraining. The extra token is the first of the lane's next row.
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
