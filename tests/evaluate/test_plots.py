"""How pictures are labelled."""

from pathlib import Path

from pretrain.plots import figure


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
    assert {"0.6", "2"} <= set(small) and "" in small  # where there is room
    assert [label.get_text() for label in named.xaxis.get_ticklabels()] == ["one", "two", "four"]
