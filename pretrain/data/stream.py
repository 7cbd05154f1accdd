"""TextStream: training batches of text for one rank, with exact resume at any number of ranks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from pretrain.config.schema import DataConfig
from pretrain.data import lanes
from pretrain.data.batch import Batch
from pretrain.data.index import find_split, read_index
from pretrain.data.lanes import Cursor, Row, Span
from pretrain.data.mixture import corpus_shares, longest_over, mean_places
from pretrain.data.order import Order, token_shares
from pretrain.data.prefetch import Prefetcher
from pretrain.data.reader import Shards
from pretrain.data.rows import RowReader
from pretrain.data.source import Gather
from pretrain.data.splits import Files
from pretrain.data.upcoming import Upcoming
from pretrain.errors import UserError
from tokenizer.encode import Tokenizer


@dataclass
class Position:
    """The position of the stream."""

    steps: int  # global batches returned so far
    cursors: list[Cursor]  # of this rank's lanes


class TextStream:
    """Endless batches of text: rows rank * B/ranks .. (rank + 1) * B/ranks - 1 of each global
    batch.

    A rank follows only its own lanes, in a thread that stays a few batches ahead: lanes do not
    depend on each other. The rows of a global batch do not depend on the number of ranks.

    vocab_size     ids are below this
    wait_seconds   total time that next() has made the trainer wait

    UserError names what is wrong with the settings or the shards.
    """

    def __init__(
        self,
        config: DataConfig,
        window: int,
        batch: int,
        seed: int,
        *,
        rank: int = 0,
        ranks: int = 1,
        checks: bool = True,
    ) -> None:
        """checks: see `Shards`."""
        tokenizer = Tokenizer.load(config.tokenizer)
        self._files = files = Files(config)
        self._corpora = [
            Shards(find_split(files.place(corpus.path), "train"), tokenizer, files, checks=checks)
            for corpus in config.train
        ]
        self._batches_ahead = max(shards.batches_ahead for shards in self._corpora)
        self._config, self._window, self._batch = config, window, batch
        self._weights = [corpus.weight for corpus in config.train]
        self._sizes = [len(shards) for shards in self._corpora]
        self._means = [shards.index.mean_tokens for shards in self._corpora]
        self._order = Order(self._sizes, token_shares(self._weights, self._means), seed)
        self._reader = RowReader(
            self._corpora, tokenizer.eos, tokenizer.pad, config.windows, window
        )
        self._mine = range(rank * batch // ranks, (rank + 1) * batch // ranks)
        fingerprints = [shards.index.fingerprint for shards in self._corpora]
        self._data = [list(pair) for pair in zip(fingerprints, self._weights, strict=True)]
        self.vocab_size = tokenizer.vocab_size
        self.wait_seconds = 0.0
        # after the last batch returned
        self._position = Position(0, [(0, 0)] * len(self._mine))
        self._rows: Sequence[Row] = []  # of the last batch returned
        # after the last batch planned; used only by the prefetch thread, like the planned batches
        self._ahead = self._position
        self._planned: deque[tuple[Sequence[Row], Position]] = deque()
        self._prefetcher: Prefetcher[tuple[Batch, Sequence[Row], Position]] | None = None

    def next(self) -> Batch:
        """This rank's rows of the next global step."""
        if self._prefetcher is None:
            self._ahead = self._position
            self._planned.clear()
            lengths = [shards.lengths for shards in self._corpora]
            self._upcoming = Upcoming(self._order, lengths, self._mine, self._batch)
            self._prefetcher = Prefetcher(self._make)
        batch, self._rows, self._position = self._prefetcher.next()
        self.wait_seconds += self._prefetcher.wait_seconds
        return batch

    def describe(self, steps: int) -> list[str]:
        """Lines on what each corpus contributes to a run of `steps` steps; and warnings if one is
        also the held-out text, or has too few or too long documents for the rows of a batch.
        """
        return [*self._judged_by(), *self._shares(steps), *self._ill_cut(steps)]

    def _judged_by(self) -> list[str]:
        trained = {
            fingerprint: corpus.path
            for corpus, (fingerprint, _) in zip(self._config.train, self._data, strict=True)
        }
        lines = []
        for setting, path in self._config.heldout_paths().items():
            if path:
                heldout = find_split(self._files.place(path), "heldout")
                if corpus := trained.get(read_index(heldout).fingerprint):
                    loss = "the held-out loss" if setting == "data.heldout" else "its loss"
                    lines.append(
                        f"{corpus} is also {setting}, so {loss} is measured on training text; "
                        "`hypnos data prepare --holdout 0.01` holds some of it out"
                    )
        return lines

    def _shares(self, steps: int) -> list[str]:
        L, W, places = self._window, self._config.windows, self._means
        if self._config.documents == "isolate":
            places = [mean_places(shards.lengths, L, W) for shards in self._corpora]
        tokens = steps * self._batch * W * L
        if len(self._corpora) == 1:
            epochs = tokens / places[0] / self._sizes[0]
            return [
                f"{self._config.train[0].path}: {_documents(self._sizes[0])}, "
                f"{self._corpora[0].index.tokens:,} tokens, about {epochs:,.2f} epochs in "
                f"{steps:,} steps"
            ]
        shares = corpus_shares(self._sizes, self._means, self._weights, tokens, places)
        return [
            f"{corpus.path}: {share} in {steps:,} steps"
            for corpus, share in zip(self._config.train, shares, strict=True)
        ]

    def _ill_cut(self, steps: int) -> list[str]:
        """A line for each corpus whose documents are too few or too long for the batch's rows."""
        lines = []
        reads = steps * self._config.windows * self._window
        for corpus, shards in zip(self._config.train, self._corpora, strict=True):
            why = []
            if len(shards) < self._batch:
                why.append(
                    f"only {_documents(len(shards))} for the {self._batch:,} rows of a batch, so "
                    "some rows will read the same text"
                )
            if longest := longest_over(shards.lengths, shards.index.shards, reads):
                why.append(
                    f"its longest document has {longest:,} tokens, but a row reads {reads:,} in "
                    "the whole run: the rest is never read, and fractions and epochs are off"
                )
            if why:
                lines.append(
                    f"{corpus.path}: {'; '.join(why)}. Give more, shorter documents: `hypnos data "
                    r"prepare ... --separator '\n\n'` makes each paragraph a document"
                )
        return lines

    def samples(self) -> Callable[[Gather], Any]:
        """The stretches of documents in each row of the last global batch: corpus, document, first
        token, number of tokens.

        `document` is the argument of `Shards(find_split(corpus, "train"), tokenizer).document`. Its
        EOS counts as one more token. With documents = "stitch", a row's last stretch is the one
        token that its last position predicts.
        """
        rows, paths = self._rows, [corpus.path for corpus in self._config.train]

        def describe(span: Span) -> dict[str, Any]:
            place = {"corpus": paths[span.corpus], "document": span.document}
            return place | {"first": span.start, "tokens": span.length}

        return lambda gather: gather([[describe(span) for span in row.spans] for row in rows])

    def state_dict(self) -> dict[str, Any]:
        """The position of the stream after the last batch taken, and the data it belongs to.

        It also depends on settings, which a resumed run may not change (pretrain/config).
        """
        return {
            "steps": self._position.steps,
            "lanes": torch.tensor(self._position.cursors),  # [rows, 2] see lanes.Cursor
            "data.train": self._data,
        }

    def check_state_dict(self, state: dict[str, Any]) -> None:
        """UserError if the data differ."""
        if state["data.train"] != self._data:
            raise UserError(
                "data.train differs from the checkpoint's "
                f"({difference(state['data.train'], self._data)}), so its stream of text cannot be "
                "continued; set it back, or start a new run from its weights: run.init_from=RUN "
                "run.name=NEW"
            )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume at the exact token, with any number of ranks. UserError if the data differ."""
        self.check_state_dict(state)
        if state["lanes"].shape != (len(self._mine), 2):
            raise ValueError(f"{len(self._mine)} lanes do not stand at {state['lanes']}")
        self._close_files()  # but not the background check of the index
        self._position = Position(
            state["steps"], [(k, used) for k, used in state["lanes"].tolist()]
        )

    def close(self) -> None:
        """End the threads and close the shards."""
        self._close_files()
        for shards in self._corpora:
            shards.close()

    def _close_files(self) -> None:
        self._files.stop()  # the thread may be waiting for a store
        if self._prefetcher is not None:
            self._prefetcher.close()
            self._prefetcher = None
        self._files.close()

    def _make(self) -> tuple[Batch, Sequence[Row], Position]:
        """The next batch, its rows, and the position after it. Runs in the prefetch thread."""
        while len(self._planned) < self._batches_ahead:
            self._plan_ahead()
        rows, position = self._planned.popleft()
        isolate = self._config.documents == "isolate"
        read = self._reader.isolated if isolate else self._reader.stitched
        return read(self._mine, rows), rows, position

    def _plan_ahead(self) -> None:
        """Plans one more batch, and starts to fetch what it reads."""
        planned = [self._plan(row, cursor) for row, cursor in enumerate(self._ahead.cursors)]
        rows, cursors = zip(*planned, strict=True)
        self._ahead = Position(self._ahead.steps + 1, list(cursors))
        self._planned.append((rows, self._ahead))
        self._reader.ahead(rows)

    def _plan(self, row: int, cursor: Cursor) -> tuple[Row, Cursor]:
        config, find = self._config, partial(self._upcoming.find, row)
        if config.documents == "isolate":
            return lanes.isolate(find, cursor, config.windows, self._window, config.carry)
        return lanes.stitch(find, cursor, config.windows * self._window)


def _documents(count: int) -> str:
    return f"{count:,} document{'' if count == 1 else 's'}"


def difference(before: Sequence[Sequence[Any]], now: Sequence[Sequence[Any]]) -> str:
    """How a run's corpora, (fingerprint, weight) each, differ from what they were."""
    if len(before) != len(now):
        return f"corpora: {len(now)} instead of {len(before)}"
    of_before, of_now = ([corpus for corpus, _ in each] for each in (before, now))
    if of_before == of_now:
        weights, had = ([weight for _, weight in each] for each in (now, before))
        return f"weights {weights} instead of {had}"
    if sorted(of_before) == sorted(of_now):
        return "the corpora in another order"
    which = [i for i, pair in enumerate(zip(of_before, of_now, strict=True)) if len({*pair}) > 1]
    return f"other shards in data.train[{which[0]}]"
