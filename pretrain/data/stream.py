"""The training stream of text, and the fixed batches that a run is judged on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.config.schema import DataConfig
from pretrain.data import lanes
from pretrain.data.batch import Batch
from pretrain.data.index import find_split
from pretrain.data.lanes import Cursor, Row, Span
from pretrain.data.order import Order, token_shares
from pretrain.data.prefetch import Prefetcher
from pretrain.data.reader import Shards
from pretrain.data.rows import RowReader
from pretrain.errors import UserError, shortened
from tokenizer.encode import Tokenizer


@dataclass
class Position:
    """Where the stream is: the same on every rank, whatever their number."""

    steps: int  # global batches given out
    cursors: list[Cursor]  # of every lane


class TextStream:
    """Batches of text without end: rows rank * B/ranks .. (rank + 1) * B/ranks - 1 of each global
    batch.

    Every rank follows all lanes by the documents' lengths and reads the tokens of its own rows, in
    a thread that stays a few batches ahead. The rows of a global batch do not depend on the number
    of ranks.

    vocab_size     ids are below this
    wait_seconds   how long next() has kept the trainer waiting, in all

    UserError names what is wrong with the settings or the shards.
    """

    def __init__(
        self, config: DataConfig, window: int, batch: int, seed: int, rank: int = 0, ranks: int = 1
    ) -> None:
        tokenizer = Tokenizer.load(config.tokenizer)
        self._corpora = [
            Shards(find_split(corpus.path, "train"), tokenizer) for corpus in config.train
        ]
        self._config, self._window, self._batch = config, window, batch
        weights = [corpus.weight for corpus in config.train]
        means = [shards.index.tokens / len(shards) + 1 for shards in self._corpora]
        self._order = Order(
            [len(shards) for shards in self._corpora], token_shares(weights, means), seed
        )
        self._reader = RowReader(
            self._corpora, tokenizer.eos, tokenizer.pad, config.windows, window
        )
        self._mine = range(rank * batch // ranks, (rank + 1) * batch // ranks)
        self.settings: dict[str, Any] = {
            "data.train": [
                [s.index.fingerprint, w] for s, w in zip(self._corpora, weights, strict=True)
            ],
            "run.seed": seed,
            "train.batch": batch,
            "sleep.window": window,
            "data.windows": config.windows,
            "data.documents": config.documents,
            "data.carry": config.carry,
        }
        self.vocab_size = tokenizer.vocab_size
        self.wait_seconds = 0.0
        self._position = Position(0, [(0, 0)] * batch)  # after the last batch given out
        self._rows: Sequence[Row] = []  # of the last global batch given out
        self._ahead = self._position  # after the last batch made, by the prefetcher's thread alone
        self._prefetcher: Prefetcher[tuple[Batch, Sequence[Row], Position]] | None = None

    def next(self) -> Batch:
        """This rank's rows of the next global step."""
        if self._prefetcher is None:
            self._ahead = self._position
            self._prefetcher = Prefetcher(self._make)
        batch, self._rows, self._position = self._prefetcher.next()
        self.wait_seconds += self._prefetcher.wait_seconds
        return batch

    def samples(self) -> Callable[[], Any]:
        """The stretches of documents in each row of the last global batch: corpus, document, first
        token, tokens.

        `document` is the number that `Shards(find_split(corpus, "train"), tokenizer).document`
        takes and, with nine digits, the key in the corpus's tars. Its EOS counts as one more token.
        In documents = "stitch" a row's last stretch is the one token that its last position
        predicts.
        """
        rows, paths = self._rows, [corpus.path for corpus in self._config.train]

        def describe(span: Span) -> dict[str, Any]:
            place = {"corpus": paths[span.corpus], "document": span.document}
            return place | {"first": span.start, "tokens": span.length}

        return lambda: [[describe(span) for span in row.spans] for row in rows]

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is after the last batch taken, and the settings and shards that this
        depends on.
        """
        return {
            "steps": self._position.steps,
            "lanes": [list(cursor) for cursor in self._position.cursors],
            "settings": self.settings,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at the exact token, with any number of ranks."""
        for name, mine in self.settings.items():
            if state["settings"].get(name) != mine:
                told = shortened(str(state["settings"].get(name)))
                saved = "other shards or weights" if name == "data.train" else told
                raise UserError(
                    f"{name} is not what the checkpoint's stream of text was made with ({saved}), so it cannot be "
                    "continued; set it back, or begin another run with another run.name"
                )
        self.close()
        self._position = Position(
            state["steps"], [(used_up, used) for used_up, used in state["lanes"]]
        )

    def close(self) -> None:
        """End the thread and close the shards."""
        if self._prefetcher is not None:
            self._prefetcher.close()
            self._prefetcher = None
        for shards in self._corpora:
            shards.close()

    def _make(self) -> tuple[Batch, Sequence[Row], Position]:
        """The next batch, all ranks' rows of it, and the position after it. Runs in the prefetch
        thread.
        """
        rows, cursors = zip(
            *(self._plan(*place) for place in enumerate(self._ahead.cursors)), strict=True
        )
        read = (
            self._reader.isolated if self._config.documents == "isolate" else self._reader.stitched
        )
        batch = read(self._mine, [rows[lane] for lane in self._mine])
        self._ahead = Position(self._ahead.steps + 1, list(cursors))
        return batch, rows, self._ahead

    def _plan(self, lane: int, cursor: Cursor) -> tuple[Row, Cursor]:
        config, B, L = self._config, self._batch, self._window
        if config.documents == "isolate":
            return lanes.isolate(self._find, lane, B, cursor, config.windows, L, config.carry)
        return lanes.stitch(self._find, lane, B, cursor, config.windows * L)

    def _find(self, draw: int) -> tuple[int, int, int]:
        """(corpus, document, tokens with EOS) of a draw."""
        corpus, document = self._order(draw)
        return corpus, document, int(self._corpora[corpus].lengths[document]) + 1


def heldout_batches(
    path: str | Path, tokenizer: Tokenizer, window: int, windows: int, batch: int, n: int
) -> list[Batch]:
    """`n` fixed batches for judging a model: every row is one stretch of one document, read with S
    = 0.

    No row has padding and every position predicts, so that all windows are averaged over the same
    rows. First comes the beginning of each document that fills a row, in the order of the shards,
    then the second stretch of each that has one, and so on. UserError says how many rows the
    held-out documents have when they are too few.
    """
    shards = Shards(find_split(path, "heldout"), tokenizer)
    width = windows * window
    # [documents]; EOS follows the last token, so that it has a target
    stretches = shards.lengths // width
    if stretches.sum() < n * batch:
        raise UserError(
            f"{path}: the held-out documents fill {stretches.sum()} sequences of {width} tokens, {n * batch} are asked "
            "for; lower train.eval_batches or train.batch, or prepare the corpus with a larger holdout"
        )
    places = (
        (document, turn * width)
        for turn in range(int(stretches.max()))
        for document in (stretches > turn).nonzero()[0].tolist()
    )
    reader = RowReader([shards], tokenizer.eos, tokenizer.pad, windows, window)
    batches = []
    for _ in range(n):
        rows = [
            Row([Span(0, *next(places), width, 0, fresh=True)], carries=False) for _ in range(batch)
        ]
        batches.append(reader.isolated(range(batch), rows))
    shards.close()
    return batches
