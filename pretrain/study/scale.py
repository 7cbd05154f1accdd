"""A ladder's results: what each run achieved, as input of the fits.

OUT/runs, done, logs      see `pretrain.study.runner`
OUT/results.csv           a line for each run and token budget
OUT/predictions.csv       of each rung from those below: written before it runs, with errors after
OUT/fit.md, fit.html      the laws with their intervals, the frontier at equal FLOPs
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.config.schema import Config
from pretrain.files import write_atomically
from pretrain.logged import depth_of
from pretrain.model.draw import drawn_passes
from pretrain.model.flops import step_flops
from pretrain.study.estimate import example, with_vocabulary
from pretrain.study.ladder import LadderRun, count
from pretrain.study.law import DepthPoints, Points
from pretrain.study.one_run import Run, is_done, left_by
from pretrain.tables import as_csv


@dataclass(frozen=True)
class Size:
    """What is known of a run before it runs."""

    config: Config
    parameters: int
    looped: int
    tokens: float  # of the whole run, including padding
    flops: float
    sleep: float  # of these, FLOPs of passes 2..N

    @property
    def once(self) -> int:
        """Parameters outside the loop."""
        return self.parameters - self.looped

    @classmethod
    def of(cls, run: Run) -> Size:
        config = with_vocabulary(run.settings())
        whole, looped = count(config)
        row, rows = example(config), config.train.steps * config.train.batch
        tokens = float(rows * row.size[1])
        flops, awake = (
            rows * step_flops(row, config.model, config.sleep, steps).flops
            for steps in (drawn_passes(config), {1: 1})
        )
        return cls(config, whole, looped, tokens, flops, flops - awake)


@dataclass(frozen=True)
class Finished:
    """The result of one run at one token budget."""

    of: LadderRun
    size: Size
    loss: float  # nan: it diverged
    accuracy: dict[str, float]

    @property
    def diverged(self) -> bool:
        """Whether its loss is nan: then its other results mean nothing."""
        return math.isnan(self.loss)

    @property
    def line(self) -> dict[str, object]:
        """Its row in results.csv."""
        r, size = self.of, self.size
        return {
            "rung": r.rung, "width": r.width, "blocks": len(size.config.model.layers),
            "N": r.passes, "window": r.window, "seed": r.seed, "budget": r.budget,
            "steps": size.config.train.steps, "tokens": size.tokens, "flops": size.flops,
            "once": size.once, "looped": size.looped, "loss": self.loss, **self.accuracy,
        }  # fmt: skip


def finished(runs: Sequence[LadderRun], folder: Path) -> list[Finished]:
    """The results of finished runs, in order."""
    found = []
    sizes: dict[tuple[int, int, int, float], Size] = {}  # seeds have the same
    for r in runs:
        if not is_done(folder, r.run):
            continue
        key = (r.rung, r.passes, r.window, r.budget)
        size = sizes[key] = sizes.get(key) or Size.of(r.run)
        (result,) = (e for e in left_by(folder, r.run).evaluations if e["passes"] == r.passes)
        found.append(Finished(r, size, result["loss"], result.get("accuracy", {})))
    return found


def points(done: Sequence[Finished]) -> Points:
    """The points for the law of loss, without diverged runs."""
    return Points(**_columns([run for run in done if not run.diverged]))


def depth_points(done: Sequence[Finished]) -> DepthPoints | None:
    """The points for the law of accuracy by depth; None: the task has no depths."""
    rows = [
        (run, depth, value)
        for run in done
        if not run.diverged
        for name, value in run.accuracy.items()
        if (depth := depth_of(name))
    ]
    if not rows:
        return None
    runs, depths, accuracies = zip(*rows, strict=True)
    shared, accuracy = _columns(runs), np.array(accuracies)
    return DepthPoints(**shared, depth=np.array(depths, float), accuracy=accuracy)


def _columns(done: Sequence[Finished]) -> dict[str, Any]:
    """The fields of `Points`."""
    numbers = {run: i for i, run in enumerate(dict.fromkeys(d.of.trunk for d in done))}
    return {
        "once": np.array([d.size.once for d in done], float),
        "looped": np.array([d.size.looped for d in done], float),
        "passes": np.array([d.of.passes for d in done], float),
        "tokens": np.array([d.size.tokens for d in done], float),
        "loss": np.array([d.loss for d in done], float),
        "rung": np.array([d.of.rung for d in done], int),
        "run": np.array([numbers[d.of.trunk] for d in done], int),
        "seed": np.array([d.of.seed for d in done], int),
    }


def write_results_csv(done: Sequence[Finished], path: Path) -> None:
    """One line for each run and budget."""
    lines = [d.line for d in done]
    headers = list(dict.fromkeys(name for line in lines for name in line))
    rows = [[line.get(name, "") for name in headers] for line in lines]
    write_atomically(path, as_csv(headers, rows))
