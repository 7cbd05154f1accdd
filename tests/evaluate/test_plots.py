"""How pictures are labelled."""

import math
from pathlib import Path

import numpy as np
import pytest

from pretrain.plots import figure, smooth


def test_a_logarithmic_axis_says_numbers_and_not_formulas(tmp_path: Path) -> None:
    with figure(tmp_path / "x.png", [], panels=2, width=4.0) as (wide, named):
        wide.plot([1, 1e12], [0.9, 2.5])
        wide.set(xscale="log", yscale="log")
        named.plot([1, 2, 4], [1, 2, 3])
        named.set(xscale="log")
        named.set_xticks([1, 2, 4], ["one", "two", "four"])
    shown = [wide.xaxis.get_major_formatter()(x, 0) for x in (1, 1e4, 1e12)]
    assert shown == ["1", "10,000", "1e+12"]
    small = [label.get_text() for label in wide.yaxis.get_ticklabels(which="minor")]
    assert {"0.6", "2"} <= set(small) and "" in small  # if there is room
    assert [label.get_text() for label in named.xaxis.get_ticklabels()] == ["one", "two", "four"]


def test_lines_are_smoothed_over_neighbours() -> None:
    assert smooth([1.0, 2.0, 6.0, 4.0, 0.0], 1) == pytest.approx([1, 3, 4, 10 / 3, 0])
    assert smooth([1.0, 5.0, 9.0], 0) == [1, 5, 9] and smooth([], 1) == []
    gone = smooth([1.0, math.nan, 3.0, 4.0, 5.0], 1)
    assert [math.isnan(v) for v in gone] == [False, True, True, False, False] and gone[3:] == [4, 5]
    values = np.random.default_rng(0).normal(size=100)
    values[50] = 1e30  # such as a gradient norm: later values stay unchanged
    smoothed, reaches = smooth(values.tolist(), 9), [min(9, i, 99 - i) for i in range(100)]
    means = [values[i - r : i + r + 1].mean() for i, r in enumerate(reaches)]
    assert smoothed == pytest.approx(means)


def test_a_label_longer_than_the_picture_loses_its_middle(tmp_path: Path) -> None:
    with figure(tmp_path / "x.png", [("a" * 99 + "b" * 99, "red")], panels=1, width=4.0) as (axis,):
        drawn = axis.figure
    (legend,) = drawn.legends
    assert legend.get_window_extent().x0 >= 0 and "a…b" in legend.get_texts()[0].get_text()
