"""Predicts each rung of a ladder by the laws of the rungs below, and compares with measurements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pretrain.files import write_atomically
from pretrain.logged import depth_of
from pretrain.study.fit import fit_depth, fit_loss, from_below
from pretrain.study.ladder import LadderRun
from pretrain.study.results import in_order, shown_name
from pretrain.study.scale import Finished, Size, depth_points, points
from pretrain.tables import as_csv


@dataclass(frozen=True)
class Prediction:
    """The prediction for one rung, N, window and budget, by the laws of the rungs below."""

    of: LadderRun  # the first seed's
    measure: str  # "loss", or an accuracy by depth: "hops_2"
    value: float
    measured: list[float]  # by seed, without diverged runs

    @property
    def error(self) -> float:
        """The error against the mean over seeds: relative for a loss, absolute for an accuracy."""
        if not self.measured:
            return float("nan")
        mean = float(np.mean(self.measured))
        return self.value / mean - 1 if self.measure == "loss" else self.value - mean


def predict(
    runs: Sequence[LadderRun], done: Sequence[Finished], number: int, chance: float
) -> list[Prediction]:
    """Predictions for a rung from the rungs below; [] if fewer than two of them are done."""
    below = [d for d in done if d.of.rung < number]
    losses = {}  # by window
    for window in {d.of.window for d in below}:
        there = points([d for d in below if d.of.window == window])
        losses[window] = from_below(there, fit_loss, number)
    deep, depths = depth_points(below), None
    if deep is not None:
        depths = from_below(deep, lambda found: fit_depth(found, chance), number)
    accuracies = [name for name in in_order(n for d in below for n in d.accuracy) if depth_of(name)]
    found = []
    for r in runs:
        if r.rung != number or r.seed:
            continue
        size = Size.of(r.run)
        same = number, r.passes, r.window, r.budget
        mine = [
            d
            for d in done
            if (d.of.rung, d.of.passes, d.of.window, d.of.budget) == same and not d.diverged
        ]
        known = {d.of.passes for d in below if d.of.window == r.window}
        # a law without phi does not apply to other N than that of its runs
        law = losses.get(r.window)
        if law and (r.passes in known or not math.isnan(law.phi)):
            loss = float(law.loss(size.once, size.looped, float(r.passes), size.tokens))
            found.append(Prediction(r, "loss", loss, [d.loss for d in mine]))
        if depths:
            horizon = depths.horizon(
                *(np.array(float(x)) for x in (size.parameters, r.passes, size.tokens))
            )
            for name in accuracies:
                share = float(depths.accuracy(horizon, np.array(depth_of(name), float)))
                found.append(Prediction(r, name, share, [d.accuracy[name] for d in mine]))
    return found


def predict_all(
    runs: Sequence[LadderRun], done: Sequence[Finished], chance: float
) -> list[Prediction]:
    """All predictions that are possible now, for every rung."""
    numbers = sorted({r.rung for r in runs})
    return [p for number in numbers for p in predict(runs, done, number, chance)]


def prediction_table(predicted: Sequence[Prediction]) -> tuple[list[str], list[list[str]]]:
    """Headers and rows: losses in nats, accuracies in percent."""
    headers = ["width", "N", "L", "budget", "", "predicted", "measured", "error"]
    rows = []
    for p in predicted:
        r, is_loss = p.of, p.measure == "loss"
        values = [p.value, *([float(np.mean(p.measured))] if p.measured else [])]
        shown = [f"{v:.4f}" if is_loss else f"{100 * v:.1f}" for v in values]
        off = f"{p.error:+.1%}" if is_loss else f"{100 * p.error:+.1f} points"
        shown += [off] if p.measured else ["-", "-"]
        place = [str(r.width), str(r.passes), str(r.window), f"{r.budget:g}"]
        rows.append([*place, shown_name(p.measure), *shown])
    return headers, rows


def write_predictions(predicted: Sequence[Prediction], path: Path) -> None:
    """Writes them as CSV, with errors where there are measurements."""
    write_atomically(path, as_csv(*prediction_table(predicted)))
