"""Rule 110: read rings of bits, then say what their first bits are after t steps of the automaton.

Section 4 of "Do Language Models Need Sleep?" (arXiv 2605.26099); docs/method.md lists what is our
choice. The rule is Turing-complete: its outcome is computed step by step, and a query leaves no
time for that.

    24 bits | 24 bits | 24 bits | 24 bits    the rings, fair bits, nothing scored
    SEP l0 l1 l2                             predicts l0 l1 l2 l3: no ring's window has a target
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pretrain.config.schema import Rule110Config
from pretrain.data.batch import IGNORE, Batch
from pretrain.errors import UserError
from pretrain.tasks.counter import Rows
from pretrain.tasks.task import make_batch

Cells = NDArray[np.uint8]
SEP = 2  # after the bits 0 and 1


class Rule110:
    """Rings of `width` cells whose ends meet, evolved for `steps` steps."""

    vocab_size = 3

    def __init__(self, config: Rule110Config, window: int) -> None:
        self.config, self.window = config, window
        self.fingerprint = f"{config} window={window}"
        self._check()

    def sample(self, seed: int, position: int, rows: int) -> Batch:
        """Training rows: fresh fair bits."""
        return self._write(Rows(seed, "rule110", position, rows))

    def test(self, seed: int, rows: int) -> Batch:
        """Test rows: other fair bits."""
        return self._write(Rows(seed, "rule110 test", 0, rows))

    def score(self, best: Tensor, batch: Batch) -> dict[str, float]:
        """ "exact": share of rows with all labels right; "label": share of labels. best: [B, T]
        int64.
        """
        right = (best == batch.targets)[:, -self.config.rings :]
        return {
            "exact": float(right.all(dim=1).double().mean()),
            "label": float(right.double().mean()),
        }

    def _write(self, draw: Rows) -> Batch:
        c = self.config
        bits = draw.below("bits", c.rings * c.width, 2)  # [B, context]
        B, context = bits.shape
        rings = bits.reshape(B, c.rings, c.width).astype(np.uint8)
        labels = evolve(rings, c.steps)[:, :, 0].astype(np.int64)  # [B, rings]
        tokens = np.concatenate([bits, np.full((B, 1), SEP), labels[:, :-1]], axis=1)
        targets = np.concatenate([np.full((B, context), IGNORE), labels], axis=1)
        return make_batch(tokens, targets, np.ones(tokens.shape, dtype=np.bool_), self.window)

    def _check(self) -> None:
        """UserError unless windows hold whole rings, or rings whole windows, and one more holds all
        labels.
        """
        width, rings, L = self.config.width, self.config.rings, self.window
        if L % width and width % L:
            raise UserError(
                f"rule110.width = {width} and sleep.window = {L}: windows would cut rings at odd "
                f"places; set sleep.window to {width}, a ring a window"
            )
        if width * rings % L:
            together = L // width
            raise UserError(
                f"rule110.rings = {rings}: sleep.window = {L} holds {together} rings, and a window "
                "of rings must carry no label; set rule110.rings to "
                f"{-(-rings // together) * together}, or sleep.window to {width}"
            )
        if rings > L:
            raise UserError(
                f"rule110.rings = {rings} labels do not fit one window of sleep.window = {L}; "
                "lower it"
            )


def evolve(cells: Cells, steps: int) -> Cells:
    """Rule 110 on rings [..., width] of 0 and 1: a cell becomes 1 unless left, itself, right are
    000, 100 or 111.
    """
    for _ in range(steps):
        left, right = np.roll(cells, 1, axis=-1), np.roll(cells, -1, axis=-1)
        cells = (cells | right) & ~(left & cells & right)
    return cells
