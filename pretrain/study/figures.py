"""Plots of a study: accuracy by depth and N, and by tokens, FLOPs and time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pretrain.logged import DEPTHS
from pretrain.plots import COLOURS, figure
from pretrain.study.intervals import Mean, mean
from pretrain.study.results import Arm, Result, measures, shown_name
from pretrain.study.summary import by_arm, scores

SEEDS = "thin: each seed, thick: their mean. Seconds are wall-clock, beside other work."
COSTS = {"tokens": "tokens read", "flops": "training FLOPs", "seconds": "seconds of training"}


def draw(results: Sequence[Result], folder: Path) -> dict[Path, str]:
    """Writes the plots of a study; returns their captions."""
    arms = by_arm(results)
    colours = {arm: COLOURS[i % len(COLOURS)] for i, arm in enumerate(arms)}
    names = measures(results)
    deepest = names[-1]
    shown = {folder / "loss_by_cost.png": f"Held-out loss on the way, {SEEDS}"}
    _by_cost(arms, colours, "loss", folder / "loss_by_cost.png")
    if deepest != "loss":
        shown[folder / "accuracy_by_depth.png"] = "Accuracy at the end, by depth."
        _by_depth(arms, colours, names, folder / "accuracy_by_depth.png")
        shown[folder / "accuracy_by_cost.png"] = f"Accuracy at the deepest on the way, {SEEDS}"
        _by_cost(arms, colours, deepest, folder / "accuracy_by_cost.png")
    return shown


def _by_depth(
    arms: dict[Arm, list[Result]], colours: dict[Arm, str], names: list[str], out: Path
) -> None:
    """Final mean accuracy by depth, with 95 % intervals over seeds; controls are thin, with their
    intervals only in the table.
    """
    with figure(out, _legend(colours), panels=1, width=7.6) as (axis,):
        for i, (arm, rs) in enumerate(arms.items()):
            means = [mean(scores(rs, name)) for name in names]
            x = np.arange(len(names)) + (i - (len(arms) - 1) / 2) * 0.24 / len(arms)
            y = [100 * m.value for m in means]
            if arm.is_control:
                axis.plot(x, y, ".-", color=colours[arm], linewidth=0.9, markersize=5)
                continue
            axis.errorbar(
                x, y, yerr=[_clipped(means, -1), _clipped(means, 1)], fmt="o-", zorder=3,
                color=colours[arm], capsize=2.5, elinewidth=1, markeredgecolor="white",
            )  # fmt: skip
        kind = names[0].rpartition("_")[0]
        axis.set(
            title="Accuracy by depth; N thick, 95 % intervals over seeds",
            xlabel=DEPTHS.get(kind, ""), ylabel="% right", ylim=(0, 104),
        )  # fmt: skip
        ticks = [n.rpartition("_")[2] if kind in DEPTHS else shown_name(n) for n in names]
        axis.set_xticks(range(len(names)), ticks)


def _clipped(means: list[Mean], side: int) -> list[float]:
    """Lengths of error bars in percent, clipped to 0..100; none for a single seed, and for two
    seeds the range between them.
    """
    pick = max if side > 0 else min
    ends = [pick(m.values) if m.count == 2 else m.high if side > 0 else m.low for m in means]
    inside = [min(1.0, max(0.0, end)) for end in np.nan_to_num(ends)]
    return [
        0.0 if np.isnan(m.half) else max(0.0, 100 * side * (end - m.value))
        for m, end in zip(means, inside, strict=True)
    ]


def _by_cost(
    arms: dict[Arm, list[Result]], colours: dict[Arm, str], measure: str, out: Path
) -> None:
    """A held-out measure during training: each seed thin, their mean thick."""
    with figure(out, _legend(colours), panels=len(COSTS), width=10.5) as axes:
        for axis, (cost, label) in zip(axes, COSTS.items(), strict=True):
            for arm, rs in arms.items():
                lines = [_line(r, measure, cost) for r in rs]
                for x, y in lines:
                    axis.plot(x, y, color=colours[arm], alpha=0.3, linewidth=0.9)
                if len({len(x) for x, _ in lines}) == 1:
                    x, y = (np.mean(values, axis=0) for values in zip(*lines, strict=True))
                    axis.plot(x, y, color=colours[arm])
            axis.set(xlabel=label)
            axis.set_xlim(left=0)
        if measure == "loss":
            axes[0].set(title="Held-out loss", ylabel="nats per scored token")
        else:
            axes[0].set(title=f"Accuracy at {shown_name(measure)}", ylabel="% right")


def _line(r: Result, measure: str, cost: str) -> tuple[list[float], list[float]]:
    """(cost, value) at each evaluation; accuracies in percent."""
    scale = 1 if measure == "loss" else 100
    points = [(r.curve.at(step, cost), scale * s[measure]) for step, s in r.curve.evaluated]
    return [x for x, _ in points], [y for _, y in points]


def _legend(colours: dict[Arm, str]) -> list[tuple[str, str]]:
    return [(arm.label, colour) for arm, colour in colours.items()]
