"""The style of plots: fonts, a palette, and figures that are written atomically."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import Patch
from matplotlib.ticker import LogFormatter

from pretrain.files import write_atomically

COLOURS = [  # as many as a study has arms: each N and each control
    "#98a2b3", "#3b4cca", "#e8703a", "#1f9d7a", "#b0489c", "#d4a72c", "#5aa9e6", "#7a5c3e",
    "#c1121f", "#6a994e", "#4a4e69", "#f28482", "#0a9396", "#7f5af0", "#9c6644", "#2a9df4",
    "#1f2430", "#ff70a6", "#a7c957", "#5f0f40", "#ffb703", "#8ecae6", "#386641", "#d0a2f7",
]  # fmt: skip
LETTER, SWATCH, ROW = 0.075, 0.5, 0.2  # of a legend, in inches: a letter, a colour swatch, a row
INK, FAINT, GRID = "#1f2430", "#6b7280", "#e6e8ee"
STYLE = {
    "figure.dpi": 160,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "font.size": 9.5,
    "text.parse_math": False,  # a run may be called x$^$y
    "axes.edgecolor": GRID,
    "axes.labelcolor": FAINT,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlepad": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


def smooth(values: list[float], reach: int) -> list[float]:
    """The mean over up to `reach` neighbours on each side, fewer near the ends; the ends stay.

    In few operations, because a long run logs 100,000 values; and without differences of cumulative
    sums, which would lose precision after a large value.
    """
    place = np.arange(len(values))
    reaches = np.minimum(reach, np.minimum(place, place[::-1]))
    at, length, total = place - reaches, 2 * reaches + 1, np.zeros(len(values))
    sums, width = np.array(values, dtype=float), 1  # sums of `width` values from each place on
    while width <= length.max(initial=0):
        taken = length & width > 0
        total[taken] += sums[at[taken]]
        at[taken] += width
        sums, width = sums[:-width] + sums[width:], 2 * width
    means: list[float] = (total / length).tolist()
    return means


class _Plain(LogFormatter):
    """Writes 0.9, 20, 1e+11 where its parent class puts a label."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:,g}" if super().__call__(x, pos) else ""


def _without_middle(label: str, room: int) -> str:
    """A label shortened to `room` letters: its start and its end, since paths differ in both."""
    half = (room - 1) // 2
    return label if len(label) <= room else f"{label[:half]}…{label[-half:]}"


@contextmanager
def figure(
    out: Path, legend: Sequence[tuple[str, str]], *, panels: int, width: float
) -> Iterator[Any]:
    """Axes to draw on; the file is written atomically.

    Args:
        out: its suffix gives the format, .png or .svg.
        legend: (label, colour) of what all panels show.
    """
    room = int(0.85 * (width - SWATCH) / LETTER)  # 0.85: many letters are wider
    labels = [_without_middle(label, room) for label, _ in legend]
    longest = max(map(len, labels), default=0)
    columns = max(1, min(len(legend), int(width / (LETTER * longest + SWATCH))))
    rows = -(-len(legend) // columns)
    with mpl.rc_context(STYLE):
        size = (width, 3.5 + ROW * max(0, rows - 1))
        drawn, axes = plt.subplots(1, panels, figsize=size, squeeze=False)
        try:
            yield axes[0]
            for axis in (a for panel in axes[0] for a in (panel.xaxis, panel.yaxis)):
                if isinstance(axis.get_major_formatter(), LogFormatter):  # which writes formulas
                    axis.set_major_formatter(_Plain())
                    axis.set_minor_formatter(_Plain())
            handles = [Patch(color=colour) for _, colour in legend]
            drawn.legend(handles, labels, loc="outside upper right", ncols=columns, labelcolor=INK)
            content = BytesIO()
            drawn.savefig(content, format=out.suffix[1:])
            out.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(out, content.getvalue())
        finally:
            plt.close(drawn)
