"""How best to spend FLOPs by the fitted laws: model size, text, window length or sleep.

A law gives the loss for any size, text and N; the ladder gives the cost of a token. Between the
rungs, and up to REACH times beyond them, cost and share of looped parameters are interpolated
linearly, log against log. Less text than the shortest run read, or more than REACH times the
longest, is not considered: there the law does not hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pretrain.study.fit import Fit, Interval
from pretrain.study.law import Array, LossLaw

REACH = 4.0  # times the largest rung's parameters, its FLOPs, and the most text of any
SIZES = 160  # how many sizes between the smallest and the largest are tried


@dataclass(frozen=True)
class FrontierArm:
    """One way to spend FLOPs: N passes over windows of L tokens, at any size."""

    passes: int
    window: int
    once: Array  # parameters by rung, from the smallest
    looped: Array
    flops_per_token: Array  # of training, by rung
    text: tuple[float, float]  # the fewest and the most tokens that its runs read

    def at(self, size: Array) -> tuple[Array, Array, Array]:
        """(once, looped, FLOPs per token) of models with so many parameters."""
        whole = self.once + self.looped
        once = np.exp(_line(np.log(size), np.log(whole), np.log(self.once)))
        cost = np.exp(_line(np.log(size), np.log(whole), np.log(self.flops_per_token)))
        return np.minimum(once, size), np.maximum(size - once, 0.0), cost


@dataclass(frozen=True)
class Best:
    """The best use of a number of FLOPs in one arm."""

    arm: FrontierArm
    flops: float
    loss: Interval
    parameters: float
    tokens: float
    wins: float  # share of resampled laws that give this arm the lowest loss


def _line(x: Array, xs: Array, ys: Array) -> Array:
    """Linear interpolation through the points, and extrapolation beyond them."""
    if len(xs) == 1:
        return ys[0] + (x - xs[0])
    i = np.clip(np.searchsorted(xs, x) - 1, 0, len(xs) - 2)
    return ys[i] + (x - xs[i]) * (ys[i + 1] - ys[i]) / (xs[i + 1] - xs[i])


def _sizes(arm: FrontierArm) -> Array:
    whole = arm.once + arm.looped
    return np.geomspace(whole[0], whole[-1] * REACH, SIZES)


def _losses(law: LossLaw, arm: FrontierArm, flops: float) -> Array:
    """Loss by size; infinite where the text would be too short or too long."""
    once, looped, cost = arm.at(_sizes(arm))
    tokens, (fewest, most) = flops / cost, arm.text
    told = (tokens >= 0.999 * fewest) & (tokens <= REACH * most)  # 0.999: what rounding may take
    return np.where(told, law.loss(once, looped, float(arm.passes), tokens), np.inf)


def frontier(
    fits: Mapping[int, Fit[LossLaw]], arms: list[FrontierArm], flops: float
) -> list[Best | None]:
    """The best of each arm with so many FLOPs; None if it cannot spend them. fits: by window."""

    def lowest(draw: int | None) -> list[float]:
        laws = {
            window: fit.law if draw is None else fit.resampled[draw] for window, fit in fits.items()
        }
        return [float(_losses(laws[arm.window], arm, flops).min()) for arm in arms]

    draws = min(len(fit.resampled) for fit in fits.values())
    drawn = np.array([lowest(i) for i in range(draws)]).reshape(draws, len(arms))
    winners = drawn.argmin(axis=1)
    best: list[Best | None] = []
    for i, (arm, loss) in enumerate(zip(arms, lowest(None), strict=True)):
        if loss == np.inf:
            best.append(None)
            continue
        size = _sizes(arm)[_losses(fits[arm.window].law, arm, flops).argmin()]
        _, _, cost = arm.at(np.array([size]))
        interval = Interval.of(loss, drawn[:, i].tolist())
        tokens, wins = flops / float(cost[0]), float((winners == i).mean()) if draws else math.nan
        best.append(Best(arm, flops, interval, float(size), tokens, wins))
    return best


def exchange(
    fits: Mapping[int, Fit[LossLaw]], arms: list[FrontierArm], rung: int, tokens: float
) -> dict[str, Interval]:
    """By how much the loss falls when FLOPs are doubled, from one rung without sleep on.

    Args:
        fits: by window. arms: by window and N; the first has N = 1, and others of its window have
            more. rung: where it starts, as an index into the arms' rungs. tokens: read there.
    """
    first = arms[0]
    fit, start = fits[first.window], float((first.once + first.looped)[rung])
    cost = float(first.flops_per_token[rung])

    def loss(law: LossLaw, size: float, passes: float, text: float) -> float:
        once, looped, _ = first.at(np.array([size]))
        return float(law.loss(once, looped, passes, text)[0])

    sizes = _sizes(first)
    doubled = float(sizes[np.abs(first.at(sizes)[2] - 2 * cost).argmin()])
    # every pass costs the same: the N at which a token costs twice as much
    more = [arm for arm in arms if arm.window == first.window][-1]
    pass_cost = (float(more.flops_per_token[rung]) - cost) / (more.passes - 1)
    longer = 1 + cost / pass_cost
    ways = {
        f"bigger: {doubled / start:.2f} x the parameters": (first.window, doubled, 1.0, tokens),
        "more text: 2 x the tokens": (first.window, start, 1.0, 2 * tokens),
        f"more sleep: N = {longer:.1f}": (first.window, start, longer, tokens),
    }
    for arm in arms:
        if arm.passes == 1 and arm.window > first.window:
            text = 2 * tokens * cost / float(arm.flops_per_token[rung])
            name = f"longer windows: L = {arm.window}, {text / tokens:.2f} x the tokens"
            ways[name] = arm.window, start, 1.0, text

    def gain(laws: Sequence[LossLaw], *way: float) -> float:
        before, after = laws
        return loss(before, start, 1.0, tokens) - loss(after, *way)

    def interval(window: int, *way: float) -> Interval:
        to = fits[window]
        drawn = [gain(pair, *way) for pair in zip(fit.resampled, to.resampled, strict=False)]
        return Interval.of(gain((fit.law, to.law), *way), drawn)

    return {name: interval(*way) for name, way in ways.items()}
