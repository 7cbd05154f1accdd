"""Measures the best learning rate for each batch size, and how large a batch may be.

    python -m benchmarks.batch configs/scale/text.toml --out runs/batch    # two hours of a core

This tests a ladder's `batch_power`, and the square root by which learning rates follow it: several
widths and N read the same text in batches of half to sixteen times the configuration's, each with
several rates. Runs that are already in the folder are not repeated.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby, pairwise, product
from pathlib import Path

import numpy as np

from launch import HYPNOS
from pretrain.config.load import load
from pretrain.config.schema import Config
from pretrain.files import write_atomically
from pretrain.study.controls import passes
from pretrain.study.ladder import Study, read_study, size
from pretrain.study.one_run import Run, left_by
from pretrain.study.progress import StudyProgress
from pretrain.study.runner import run_all
from pretrain.study.transfer import transferred
from pretrain.tables import as_csv, table

BATCHES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
RATES = (0.5, 1.0, 2.0, 4.0, 8.0)
WORSE = 0.01  # of the loss: a batch whose loss is at most this much higher counts as free


@dataclass(frozen=True)
class Point:
    """One run, and its loss once it is done."""

    width: int
    passes: int
    text: float  # how much is read, as a share of what the configuration reads
    batch: float  # as a multiple of the configuration's
    rate: float  # as a multiple of the tuned rates times the square root of `batch`
    loss: float = float("nan")

    @property
    def name(self) -> str:
        return f"w{self.width}-n{self.passes}-t{self.text:g}-b{self.batch:g}-r{self.rate:g}"

    def run(self, file: Path, study: Study) -> Run:
        """How it is trained: warm-up and decay span as much text as the configuration's."""
        ladder = study.ladder
        path = file.parent / ladder.config
        tuned = load(path, ladder.settings)
        arm = [*ladder.settings, *size(tuned, self.width, len(tuned.model.layers))]
        arm += passes(self.passes)
        arm += transferred(load(path, arm), tuned, study.transfer)
        steps, factor = tuned.train.steps * self.text / self.batch, self.rate * self.batch**0.5
        arm += [
            f"train.batch={round(tuned.train.batch * self.batch)}",
            f"train.steps={round(steps)}",
            f"optimizer.warmup={round(tuned.optimizer.warmup / self.batch)}",
            f"optimizer.decay={round(ladder.decay * steps)}",
            f"train.checkpoint_every={round(steps)}",
            *(f"optimizer.{name}={rate * factor:.6g}" for name, rate in _rates(load(path, arm))),
        ]
        return Run(self.name, path, tuple(arm), (self.passes,))


def _rates(config: Config) -> Iterator[tuple[str, float]]:
    yield "muon_lr", config.optimizer.muon_lr
    yield "adamw_lr", config.optimizer.adamw_lr


@dataclass(frozen=True)
class Best:
    """The minimum of a parabola through three losses, over the logarithm of the rate."""

    batch: float
    rate: float  # as in Point
    loss: float
    inside: bool  # the lowest loss is not at either end of the rates tried

    @classmethod
    def of(cls, points: Sequence[Point]) -> Best:
        points = sorted(points, key=lambda p: p.rate)
        lowest = min(range(len(points)), key=lambda i: points[i].loss)
        middle = min(max(lowest, 1), len(points) - 2)
        three = points[middle - 1 : middle + 2]
        x = [math.log2(p.rate) for p in three]
        a, b, c = np.polyfit(x, [p.loss for p in three], 2).tolist()
        at = min(max(-b / (2 * a), x[0]), x[-1]) if a > 0 else math.log2(points[lowest].rate)
        inside = a > 0 and lowest == middle
        return cls(points[0].batch, 2**at, a * at**2 + b * at + c, inside)


def main() -> None:
    """Runs what has not been run yet, and prints a row per width, N and amount of text."""
    parser = argparse.ArgumentParser(
        description="Measures which learning rates are best for which batch.",
        epilog="example: python -m benchmarks.batch configs/scale/text.toml --widths 32 128",
    )
    parser.add_argument("study", type=Path, metavar="STUDY", help="as for `hypnos scale`")
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 128], metavar="D")
    parser.add_argument("--passes", type=int, nargs="+", default=[1], metavar="N")
    parser.add_argument("--text", type=float, nargs="+", default=[1.0], metavar="SHARE")
    parser.add_argument("--batches", type=float, nargs="+", default=BATCHES, metavar="FACTOR")
    parser.add_argument("--jobs", type=int, metavar="COUNT", help="runs at a time")
    parser.add_argument("--out", type=Path, default=Path("runs/batch"), metavar="FOLDER")
    given = parser.parse_args()
    study = read_study(given.study)
    arms = product(given.widths, given.passes, given.text, sorted(given.batches), RATES)
    points = [Point(*of) for of in arms]
    runs = [point.run(given.study, study) for point in points]
    with StudyProgress() as progress:
        run_all(runs, given.out, hypnos=HYPNOS, jobs=given.jobs, show=progress.show)
    points = [
        replace(point, loss=left_by(given.out, run).evaluations[0]["loss"])
        for point, run in zip(points, runs, strict=True)
    ]
    rows = [list(asdict(point).values()) for point in points]
    write_atomically(given.out / "batch.csv", as_csv(list(asdict(points[0])), rows))
    print(table(*summary(points)))


def summary(points: Sequence[Point]) -> tuple[list[str], list[list[object]]]:
    """Headers and rows of the table.

    Returns:
        a row per width, N and amount of text: for each batch the best rate (as in `Point`; in
        brackets if it is the lowest or highest tried) and the loss there; the power of the batch
        with which the best rate grows; and the batch at which the loss is worse by `WORSE`.
    """
    batches = [f"batch x {batch:g}" for batch in sorted({p.batch for p in points})]
    rows: list[list[object]] = []
    for of, mine in groupby(points, key=lambda p: (p.width, p.passes, p.text)):
        best = [Best.of(list(same)) for _, same in groupby(mine, key=lambda p: p.batch)]
        cells = [f"{b.rate:.2f}: {b.loss:.3f}" if b.inside else f"[{b.rate:g}]: {b.loss:.3f}"
                 for b in best]  # fmt: skip
        x, y = [math.log2(b.batch) for b in best], [math.log2(b.rate) for b in best]
        power = 0.5 + float(np.polyfit(x, y, 1)[0])
        rows.append([*of, *cells, f"{power:+.2f}", _free(best)])
    return ["width", "N", "text", *batches, "rate ~ batch^", f"{WORSE:.0%} worse at"], rows


def _free(best: Sequence[Best]) -> str:
    """The batch at which the loss exceeds the smallest batch's by WORSE, interpolated."""
    most = best[0].loss * (1 + WORSE)
    for small, large in pairwise(best):
        if large.loss > most:
            share = (most - small.loss) / (large.loss - small.loss)
            return f"x {small.batch * (large.batch / small.batch) ** max(0.0, share):.1f}"
    return f"> x {best[-1].batch:g}"


if __name__ == "__main__":
    main()
