"""How often a law's 95 % intervals contain the truth, when runs of a seed have something in common.

    python -m benchmarks.coverage            # 60 simulated ladders, ten minutes of a core

Ladders of three seeds follow a known law (sizes, N and budgets as in configs/scale/text.toml). Each
loss is off by noise of its run, and by noise that all runs of its seed share. Their laws are fitted
with intervals that draw seeds first, as `hypnos scale` does, and with ones that draw all runs as if
they were independent.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np

from benchmarks.command import described
from pretrain.study.fit import fit_loss, with_intervals
from pretrain.study.law import LossLaw, Points
from pretrain.tables import table

LAW = LossLaw(E=3.0, A=30.0, B=60.0, alpha=0.34, beta=0.35, phi=0.2)
SIZES, PASSES, TOKENS, SEEDS = (2e5, 4e5, 8e5, 1.2e6), (1.0, 2.0, 4.0), (1.5e5, 3e5), 3
OF_RUN, DRAWS = 0.004, 60  # noise of a run, relative to its loss; draws of the bootstrap
TESTED = {"once": 3e5, "looped": 7e5, "passes": 2.0, "tokens": 3e5}  # between the sizes


def ladder(random: np.random.Generator, of_seed: float) -> Points:
    """A simulated ladder. of_seed: noise that a seed's runs share, relative to their loss."""
    cells = list(product(range(SEEDS), range(len(SIZES)), PASSES, TOKENS))
    seed, rung, passes, tokens = (np.array(column) for column in zip(*cells, strict=True))
    once, looped = 0.3 * np.array(SIZES)[rung], 0.7 * np.array(SIZES)[rung]
    run = np.arange(len(cells)) // len(TOKENS)
    noise = of_seed * random.standard_normal(SEEDS)[seed]
    noise += OF_RUN * random.standard_normal(run.max() + 1)[run]
    loss = LAW.loss(once, looped, passes, tokens) * np.exp(noise)
    return Points(once, looped, passes, tokens, loss, rung, run, seed)


def covered(points: Points) -> tuple[bool, bool]:
    """Whether the intervals contain the true loss of `TESTED`, and the true phi."""
    fit, true = with_intervals(points, fit_loss, draws=DRAWS), float(LAW.loss(**TESTED))
    loss, phi = fit.interval(lambda law: float(law.loss(**TESTED))), fit.interval("phi")
    return loss.low <= true <= loss.high, phi.low <= LAW.phi <= phi.high


def main() -> None:
    """Prints a table."""
    parser = described(__doc__)
    parser.add_argument("--ladders", type=int, default=60, metavar="N")
    count = parser.parse_args().ladders
    rows = []
    for of_seed in (0.0, 0.02):
        random = np.random.default_rng(0)
        ladders = [ladder(random, of_seed) for _ in range(count)]
        for drawn, one_seed in (("seeds, then the runs of each", False), ("runs alone", True)):
            found = [covered(replace(x, seed=0 * x.seed) if one_seed else x) for x in ladders]
            loss, phi = np.mean(found, axis=0)
            rows.append([f"{of_seed:.1%}", drawn, f"{loss:.0%}", f"{phi:.0%}"])
    print(table(["noise of a seed", "drawn", "loss", "phi"], rows))


if __name__ == "__main__":
    main()
