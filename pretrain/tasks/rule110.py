"""Rule 110: read rings of bits, then say what their first bits are after t steps of the automaton.

Section 4 of "Do Language Models Need Sleep?" (arXiv 2605.26099); docs/method.md lists our own
choices. The rule is Turing-complete: its outcome must be computed step by step, and there is no
time for that at the query.

    24 bits | 24 bits | 24 bits | 24 bits    the rings, fair bits, nothing scored
    SEP l0 l1 l2                             predicts l0 l1 l2 l3: no ring's window has a target

With few steps there are few patterns of the cells that determine a bit (2,048 for t = 5), which may
be memorised: with `kept`, some are held out for the test.

With `min_steps` a row is asked for every t from the most steps to the fewest, each after its own
SEP: the few steps teach what the many are composed of, and show how deep a model computes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pretrain.config.schema import Rule110Config
from pretrain.data.batch import IGNORE, Batch
from pretrain.errors import UserError
from pretrain.tasks.counter import Ints, Rows
from pretrain.tasks.kept import Mask, check_kept, described, one_in, redrawn
from pretrain.tasks.task import DeepTask, depth_at, make_batch

Cells = NDArray[np.uint8]
SEP = 2  # follows the bits 0 and 1; if several t are asked for, the SEP of the fewest steps


class Rule110(DeepTask):
    """Rings of `width` cells whose ends meet, evolved for `steps` steps."""

    def __init__(self, config: Rule110Config, window: int) -> None:
        self.config, self.window = config, window
        fewest = config.min_steps or config.steps
        # the deepest first: no answer helps with it
        self.asked = range(config.steps, fewest - 1, -1)
        self.vocab_size = SEP + max(1, len(self.asked))
        self.fingerprint = described(config, window)
        self._check()

    def sample(self, seed: int, position: int, rows: int) -> Batch:
        """Training rows: fresh fair bits."""
        return self._write(self._trained_on(seed, position, rows))

    def sample_up_to(self, seed: int, position: int, rows: int, share: float) -> Batch:
        """The same with a share of the steps, if only one t is asked for."""
        steps = depth_at(share, self.config.steps)
        if steps == self.config.steps:
            return self.sample(seed, position, rows)
        fewer = Rule110(replace(self.config, steps=steps), self.window)
        return fewer._write(self._trained_on(seed, position, rows))

    def test(self, seed: int, rows: int) -> Batch:
        """Test rows: other fair bits, held-out patterns if `kept` is set."""
        return self._write(self._rings(Rows(seed, "rule110 test", 0, rows), kept=True))

    def score(self, best: Tensor, batch: Batch) -> dict[str, float]:
        """ "exact": share of rows with all labels right; "label": share of labels. With min_steps
        {"steps_t": share of rows with all labels right after t steps}. best: [B, T] int64.
        """
        right = (best == batch.targets)[:, -len(self.asked) * self.config.rings :]
        right = right.unflatten(1, (len(self.asked), -1))  # [B, asked, rings]
        exact = right.all(dim=2).double().mean(dim=0)  # [asked]
        if self.config.min_steps:
            by_steps = zip(self.asked, exact.tolist(), strict=True)
            return {f"steps_{t}": share for t, share in sorted(by_steps)}
        return {"exact": float(exact[0]), "label": float(right.double().mean())}

    def _is_kept(self, rings: Ints) -> Mask:
        """[B, rings, width] -> [B, rings]: whether the cells that determine a label are held
        out.
        """
        cells = np.arange(min(2 * self.config.steps + 1, self.config.width)) - self.config.steps
        return one_in(self.config.kept, rings[..., cells % self.config.width])

    def _trained_on(self, seed: int, position: int, rows: int) -> Ints:
        """[B, rings, width] bits of training rows, whichever t is asked for."""
        return self._rings(Rows(seed, "rule110", position, rows), kept=False)

    def _rings(self, draw: Rows, kept: bool) -> Ints:
        """[B, rings, width] bits; `kept`: held-out ones."""
        c = self.config

        def bits(again: str) -> Ints:
            return draw.below(f"bits{again}", c.rings * c.width, 2).reshape(-1, c.rings, c.width)

        return redrawn(bits, self._is_kept, kept=kept) if c.kept else bits("")

    def _write(self, rings: Ints) -> Batch:
        bits = rings.reshape(len(rings), -1)  # [B, context]
        B, context = bits.shape
        tokens, targets = [bits], [np.full((B, context), IGNORE)]
        for t, after in self._evolved(rings.astype(np.uint8)):
            labels = after[:, :, 0].astype(np.int64)  # [B, rings]
            tokens += [np.full((B, 1), SEP + t - self.asked[-1]), labels[:, :-1]]
            targets.append(labels)
        row = np.concatenate(tokens, axis=1)
        valid = np.ones(row.shape, dtype=np.bool_)
        return make_batch(row, np.concatenate(targets, axis=1), valid, self.window)

    def _evolved(self, rings: Cells) -> list[tuple[int, Cells]]:
        """(t, the rings after t steps) for each t asked for, in that order."""
        found, cells, done = [], rings, 0
        for t in reversed(self.asked):
            cells, done = evolve(cells, t - done), t
            found.append((t, cells))
        return found[::-1]

    def _check(self) -> None:
        """UserError unless windows hold whole rings, or rings fill whole windows, and one more
        window holds all labels.
        """
        check_kept("rule110.kept", self.config.kept)
        width, rings, L = self.config.width, self.config.rings, self.window
        if L % width and width % L:
            raise UserError(
                f"rule110.width = {width} and sleep.window = {L}: windows would cut rings "
                f"unevenly; set sleep.window to {width}, one ring per window"
            )
        if width * rings % L:
            together = L // width
            raise UserError(
                f"rule110.rings = {rings}: sleep.window = {L} holds {together} rings, and a window "
                "of rings must carry no label; set rule110.rings to "
                f"{-(-rings // together) * together}, or sleep.window to {width}"
            )
        if self.config.min_steps > self.config.steps:
            raise UserError(
                f"rule110.min_steps = {self.config.min_steps} is more than rule110.steps = "
                f"{self.config.steps}; lower it, or set it to 0 to ask only for that many"
            )
        if rings > L:
            raise UserError(
                f"rule110.rings = {rings} labels do not fit one window of sleep.window = {L}; "
                "lower it"
            )
        if rings * len(self.asked) > L and L % rings:
            raise UserError(
                f"rule110.rings = {rings}: the end of a window of sleep.window = {L} would cut "
                f"the labels of one of {len(self.asked)} questions; raise rule110.min_steps, or "
                "choose rings that divide it"
            )


def evolve(cells: Cells, steps: int) -> Cells:
    """Rule 110 on rings [..., width] of 0 and 1: a cell becomes 1 unless left, itself, right are
    000, 100 or 111.
    """
    for _ in range(steps):
        left, right = np.roll(cells, 1, axis=-1), np.roll(cells, -1, axis=-1)
        cells = (cells | right) & ~(left & cells & right)
    return cells
