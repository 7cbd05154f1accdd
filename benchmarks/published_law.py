"""Fits our law of loss to Chinchilla's published runs, and compares with Besiroglu et al.

The runs are those that Besiroglu et al. (arXiv 2404.10102) read off Figure 4 of Hoffmann et al.:
`data/svg_extracted_data.csv` of github.com/epoch-research/analyzing-chinchilla, which has no
licence and so is not included here. Like them we leave out the five runs with the fewest tokens per
parameter.

    python -m benchmarks.published_law svg_extracted_data.csv    # a quarter of a minute
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from benchmarks.command import described
from pretrain.study.fit import fit_loss, with_intervals
from pretrain.study.law import Points
from pretrain.tables import table

PUBLISHED = {  # value and standard error
    "E": (1.8172, 0.03), "A": (482.01, 124.6), "B": (2085.43, 1293.0),
    "alpha": (0.3478, 0.02), "beta": (0.3658, 0.02),
}  # fmt: skip
LEFT_OUT = 5


def runs(path: Path) -> Points:
    """The file's runs, without the five left out. D = C / 6 N."""
    with path.open(newline="") as file:
        rows = [[float(row[name]) for name in ("Model Size", "Training FLOP", "loss")]
                for row in csv.DictReader(file)]  # fmt: skip
    size, flops, loss = np.array(rows).T
    tokens = flops / (6 * size)
    kept = np.sort(np.argsort(tokens / size)[LEFT_OUT:])
    n = len(kept)
    return Points(
        once=np.zeros(n), looped=size[kept], passes=np.ones(n), tokens=tokens[kept],
        loss=loss[kept], rung=np.zeros(n, np.int64), run=np.arange(n), seed=np.zeros(n, np.int64),
    )  # fmt: skip


def main() -> None:
    """Prints a table."""
    parser = described(__doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="svg_extracted_data.csv")
    points = runs(parser.parse_args().file)
    fit = with_intervals(points, fit_loss)
    rows = []
    for name, (value, error) in PUBLISHED.items():
        ours = fit.interval(name)
        off = abs(ours.value - value) / error
        low, high = f"{ours.low:.4g}", f"{ours.high:.4g}"
        rows.append([name, f"{ours.value:.4f}", f"{low} to {high}", f"{value} ({error})",
                     f"{off:.2f}"])  # fmt: skip
    print(f"{len(points)} runs\n")
    print(table(["", "ours", "95 % of 200 draws", "published", "apart, standard errors"], rows))


if __name__ == "__main__":
    main()
