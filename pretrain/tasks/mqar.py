"""MQAR: read key-value pairs, then say which value belongs to a key.

Multi-query associative recall (Arora et al., "Zoology", arXiv 2312.04927), with the queries after
the context is evicted. It needs memory capacity but no depth: one look-up answers a query.

    k v  k v  k v  k v    distinct keys, any values; nothing scored
    k k k                 the queries, distinct: at each, its value is predicted

Keys and values are disjoint sets of tokens. The answers are not in the input.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from pretrain.config.schema import MqarConfig
from pretrain.data.batch import IGNORE, Batch
from pretrain.errors import UserError
from pretrain.tasks.counter import Rows
from pretrain.tasks.task import Task, check_context, make_batch


class Mqar(Task):
    """Associative recall of `queries` of `pairs` pairs."""

    def __init__(self, config: MqarConfig, window: int) -> None:
        self.config, self.window = config, window
        self.vocab_size = 2 * config.vocabulary
        self.fingerprint = f"{config} window={window}"
        if not config.queries <= config.pairs <= config.vocabulary:
            raise UserError(
                f"mqar: queries ask for distinct pairs, of distinct keys, so queries <= pairs <= "
                f"vocabulary, but they are {config.queries}, {config.pairs} and "
                f"{config.vocabulary}; lower mqar.queries or raise mqar.vocabulary"
            )
        check_context("mqar.pairs x 2", 2 * config.pairs, window)

    def sample(self, seed: int, position: int, rows: int) -> Batch:
        """Training rows."""
        return self._write(Rows(seed, "mqar", position, rows))

    def test(self, seed: int, rows: int) -> Batch:
        """Test rows, of the same distribution."""
        return self._write(Rows(seed, "mqar test", 0, rows))

    def score(self, best: Tensor, batch: Batch) -> dict[str, float]:
        """ "exact": share of rows with all values right; "value": share of values. best: [B, T]
        int64.
        """
        right = (best == batch.targets)[:, 2 * self.config.pairs :]
        return {
            "exact": float(right.all(dim=1).double().mean()),
            "value": float(right.double().mean()),
        }

    def _write(self, draw: Rows) -> Batch:
        c = self.config
        keys = draw.distinct("keys", c.pairs, c.vocabulary)  # [B, pairs]
        values = c.vocabulary + draw.below("values", c.pairs, c.vocabulary)
        B = len(keys)
        asked = draw.order("queries", c.pairs)[:, : c.queries]  # [B, queries], which pairs
        pairs = np.stack([keys, values], axis=2).reshape(B, 2 * c.pairs)
        tokens = np.concatenate([pairs, np.take_along_axis(keys, asked, axis=1)], axis=1)
        answers = np.take_along_axis(values, asked, axis=1)
        targets = np.concatenate([np.full(pairs.shape, IGNORE), answers], axis=1)
        return make_batch(tokens, targets, np.ones(tokens.shape, dtype=np.bool_), self.window)
