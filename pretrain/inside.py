"""Plots of what a run's probes recorded: updates of S by pass, gradients, S, throughput."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.logged import RunMetrics
from pretrain.plots import figure, smooth


def plot_passes(runs: Sequence[RunMetrics], out: Path) -> None:
    """By pass, at the last logging step that has them: the change of S, and the gradient at S."""
    with figure(out, legend(runs), panels=2, width=9.6) as axes:
        for axis, key in zip(axes, ("update_norm_per_pass", "grad_norm_per_pass"), strict=True):
            for run in runs:
                norms: list[float] = next((r[key] for r in run.train[::-1] if r.get(key)), [])
                passes = range(1, len(norms) + 1)
                axis.plot(passes, norms, "o-", color=run.colour, markeredgecolor="white")
            axis.set(xlabel="pass", ylim=(0, None))
            axis.xaxis.get_major_locator().set_params(integer=True)
        axes[0].set(title="Change of S in each pass", ylabel="norm")
        axes[1].set(title="Gradient that reaches S after each pass")


def plot_state(runs: Sequence[RunMetrics], out: Path) -> None:
    """By step: the norm of S at the ends of windows, and how much of S heads retain over a
    window.
    """
    with figure(out, legend(runs), panels=2, width=9.6) as axes:
        for axis, key in zip(axes, ("state_norm", "retention"), strict=True):
            for run in runs:
                plot_by_step(axis, run, key)
            axis.set(xlabel="step", ylim=(0, None))
        axes[0].set(title="Norm of S at the ends of windows")
        axes[1].set(title="Retention over a window, mean of heads", ylim=(0, 1.04))


def plot_heads(runs: Sequence[RunMetrics], out: Path) -> None:
    """Retention of each head over a window: at the first logging step and at the last."""
    with figure(out, legend(runs), panels=2, width=9.6) as axes:
        for axis, which in zip(axes, (0, -1), strict=True):
            for i, run in enumerate(runs):
                logged = [r["retention_per_head"] for r in run.train if r.get("retention_per_head")]
                for block, heads in enumerate(logged[which]):
                    x = block + 1 + (i - (len(runs) - 1) / 2) * 0.5 / len(runs)
                    spread = np.linspace(-0.18, 0.18, len(heads)) / len(runs)
                    axis.plot(
                        x + spread, heads, "o", color=run.colour, markersize=4.5,
                        markeredgecolor="white",
                    )  # fmt: skip
            axis.set(xlabel="delta block", ylim=(0, 1.04))
            axis.xaxis.get_major_locator().set_params(integer=True)
        axes[0].set(title="Retention of each head, first step", ylabel="of S, over a window")
        axes[1].set(title="Retention of each head, last step")


def plot_throughput(runs: Sequence[RunMetrics], out: Path) -> None:
    """By step: tokens read awake per second, and tokens times passes asleep per second."""
    with figure(out, legend(runs), panels=2, width=9.6) as axes:
        for axis, kind in zip(axes, ("wake", "sleep"), strict=True):
            for run in runs:
                plot_by_step(axis, run, f"{kind}_tokens_per_s")
            axis.set(xlabel="step", ylim=(0, None))
        axes[0].set(title="Awake: tokens a second", ylabel="tokens/s")
        axes[1].set(title="Asleep: tokens x passes a second")


def plot_by_step(axis: Any, run: RunMetrics, key: str) -> None:
    """Draws what was logged at each step: a smoothed line over a faint raw one."""
    points = [(r["step"], r[key]) for r in run.train if r.get(key) is not None]
    steps, values = [s for s, _ in points], [v for _, v in points]
    axis.plot(steps, values, color=run.colour, alpha=0.25, linewidth=0.8)
    axis.plot(steps, smooth(values, max(1, len(values) // 40)), color=run.colour)


def legend(runs: Sequence[RunMetrics]) -> list[tuple[str, str]]:
    """The legend of a plot: label and colour of each run."""
    return [(run.label, run.colour) for run in runs]
