"""Best rates and free batches are recovered from losses constructed with known ones."""

from __future__ import annotations

from itertools import product
from math import log2
from pathlib import Path

import pytest

from benchmarks.batch import BATCHES, RATES, Point, summary
from pretrain.config.load import load
from pretrain.study.ladder import read_study

STUDY = Path(__file__).parents[2] / "configs/scale/depo.toml"


def loss(batch: float, rate: float, power: float) -> float:
    """Lowest at a rate of 0.7 batch^power, and 1 % higher with each doubling of the batch."""
    return (2 + 0.1 * log2(rate / (0.7 * batch**power)) ** 2) * 1.005 ** log2(batch)


@pytest.mark.parametrize("power", [-0.25, 0.0, 0.1])
def test_what_was_put_in_is_found(power: float) -> None:
    batches = BATCHES[:4]  # whose best rate is within those tried
    points = [Point(64, 1, 1.0, b, r, loss(b, r, power)) for b, r in product(batches, RATES)]
    headers, [row] = summary(points)
    assert headers[-1] == "1% worse at" and row[:3] == [64, 1, 1.0]
    best = [float(str(cell).strip("[").partition(":")[0].strip("]")) for cell in row[3:7]]
    assert best == pytest.approx([0.7 * b**power for b in batches], abs=0.006)
    assert row[7:] == [f"{0.5 + power:+.2f}", "x 2.0"]


def test_all_batches_read_the_same_text_at_rates_of_their_square_root() -> None:
    study = read_study(STUDY)
    one, four = (
        load((run := Point(32, 2, 1.0, batch, 2.0).run(STUDY, study)).config, run.overrides)
        for batch in (1.0, 4.0)
    )
    assert four.train.batch == 4 * one.train.batch and one.sleep.passes == four.sleep.passes == 2
    assert four.train.batch * four.train.steps == one.train.batch * one.train.steps
    for name in ("muon_lr", "adamw_lr"):
        assert getattr(four.optimizer, name) == pytest.approx(2 * getattr(one.optimizer, name))
