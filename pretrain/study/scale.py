"""A ladder's results: what each run achieved, as input of the fits.

OUT/runs, done, logs      see `pretrain.study.runner`
OUT/results.csv           a line for each run and token budget
OUT/predictions.csv       of each rung from those below: written before it runs, with errors after
OUT/fit.md, fit.html      the laws with their intervals, the frontier at equal FLOPs
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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

COLUMNS = (
    "rung", "width", "blocks", "N", "window", "seed", "budget", "steps", "tokens", "flops", "once",
    "looped", "loss",
)  # fmt: skip


@dataclass(frozen=True)
class Finished:
    """The result of one run at one token budget."""

    of: LadderRun
    blocks: int
    steps: int
    tokens: float
    flops: float  # of training, counted
    once: int  # parameters outside the loop
    looped: int
    loss: float  # nan: it diverged
    accuracy: dict[str, float]

    @property
    def diverged(self) -> bool:
        """Whether its loss is nan: then its other results mean nothing."""
        return math.isnan(self.loss)

    @property
    def line(self) -> dict[str, object]:
        """Its row in results.csv."""
        r = self.of
        values = (
            r.rung, r.width, self.blocks, r.passes, r.window, r.seed, r.budget, self.steps,
            self.tokens, self.flops, self.once, self.looped, self.loss,
        )  # fmt: skip
        return {**dict(zip(COLUMNS, values, strict=True)), **self.accuracy}


@dataclass(frozen=True)
class Size:
    """What is known of a run before it runs."""

    config: Config
    parameters: int
    looped: int
    tokens: float  # of the whole run, including padding
    flops: float
    sleep: float  # of these, FLOPs of passes 2..N

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
        found.append(
            Finished(
                r, len(size.config.model.layers), size.config.train.steps, size.tokens,
                size.flops, size.parameters - size.looped, size.looped, result["loss"],
                result.get("accuracy", {}),
            )
        )  # fmt: skip
    return found


def points(done: Sequence[Finished]) -> Points:
    """The points for the law of loss, without diverged runs."""
    return Points(*_columns([run for run in done if not run.diverged]))


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
    shared = vars(Points(*_columns(runs)))
    return DepthPoints(**shared, depth=np.array(depths, float), accuracy=np.array(accuracies))


def _columns(done: Sequence[Finished]) -> Iterator[Any]:
    names = {run: i for i, run in enumerate(dict.fromkeys(d.of.trunk for d in done))}
    for value in ("once", "looped"):
        yield np.array([float(getattr(d, value)) for d in done])
    yield np.array([float(d.of.passes) for d in done])
    for value in ("tokens", "loss"):
        yield np.array([float(getattr(d, value)) for d in done])
    yield np.array([d.of.rung for d in done])
    yield np.array([names[d.of.trunk] for d in done])
    yield np.array([d.of.seed for d in done])


def write_results_csv(done: Sequence[Finished], path: Path) -> None:
    """One line for each run and budget."""
    accuracies = list(dict.fromkeys(name for d in done for name in d.accuracy))
    headers = [*COLUMNS, *accuracies]
    rows = [[d.line.get(name, "") for name in headers] for d in done]
    write_atomically(path, as_csv(headers, rows))
