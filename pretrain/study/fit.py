"""Fits laws to runs: variable projection, a robust loss, bootstrap intervals, leave-one-rung-out.

Given the exponents, the law of loss is linear in E, A and B >= 0. So at each point of a grid over
(alpha, beta, phi), non-negative least squares gives the rest (variable projection, since fitting
all constants at once is ill-conditioned). From the best grid points all constants are refined with
the Huber loss of log(predicted / measured), as in Hoffmann et al. (arXiv 2203.15556) and Besiroglu
et al. (arXiv 2404.10102).

Intervals come from resampling with replacement, seeds first and then the runs of each: runs of a
seed read the same data, so what they have in common varies only between seeds. All token budgets
of a run are drawn together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from operator import itemgetter
from typing import Any, Generic, TypeVar

import numpy as np
from scipy.optimize import least_squares, nnls

from pretrain.errors import UserError
from pretrain.study.law import Array, DepthLaw, DepthPoints, LossLaw, Points

HUBER = 1e-3  # threshold of the Huber loss, in log loss
GRID = {
    "alpha": (0.05, 0.15, 0.3, 0.5, 0.8, 1.2),
    "beta": (0.05, 0.15, 0.3, 0.5, 0.8, 1.2),
    "phi": (-0.25, 0.25, 0.75, 1.25),
}
STARTS = 2  # how many grid points are refined
# Of E, A, B, alpha, beta and phi.
LOWEST, HIGHEST = (0.0, 0.0, 0.0, 1e-3, 1e-3, -3.0), (np.inf, np.inf, np.inf, 4.0, 4.0, 4.0)
EXPONENTS = ("alpha", "beta", "phi")
EXACT = {"xtol": 1e-12, "ftol": 1e-12, "gtol": 1e-12}

P = TypeVar("P", bound=Points)
L = TypeVar("L", LossLaw, DepthLaw)


@dataclass(frozen=True)
class Interval:
    """A constant with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, drawn: Sequence[float]) -> Interval:
        """From the fitted value and those of resampled runs; nan if there are none."""
        low, high = np.quantile(drawn, [0.025, 0.975]) if len(drawn) else (np.nan, np.nan)
        return cls(value, float(low), float(high))

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True)
class Fit(Generic[L]):
    """A law, and the laws of resampled runs."""

    law: L
    resampled: list[L]

    def interval(self, of: str | Callable[[L], float]) -> Interval:
        """The interval of a constant, by name, or of any function of the law."""
        value = of if callable(of) else lambda law: float(getattr(law, of))
        found = [x for x in map(value, self.resampled) if not np.isnan(x)]
        return Interval.of(value(self.law), found)


@dataclass(frozen=True)
class _Scale:
    """Sizes and tokens are fitted relative to their geometric means, so that A and B are nats."""

    size: float
    tokens: float

    @classmethod
    def of(cls, points: Points) -> _Scale:
        means = (np.exp(np.log(values).mean()) for values in (points.parameters, points.tokens))
        return cls(*map(float, means))


def fit_loss(points: Points) -> LossLaw:
    """Fits the law of loss. B is 0 if all runs read the same number of tokens; phi is nan if all
    made the same number of passes.

    UserError: there are fewer than two sizes, or fewer points than constants.
    """
    by_tokens, by_passes = (len(np.unique(v)) > 1 for v in (points.tokens, points.passes))
    constants = 3 + 2 * by_tokens + by_passes
    sizes = len(np.unique(points.parameters))
    if sizes < 2 or len(points) < constants:
        raise UserError(
            f"a law of loss needs 2 sizes and {constants} points, and there are {sizes} and "
            f"{len(points)}; run more of the ladder"
        )
    scale = _Scale.of(points)
    free = np.array([True, True, by_tokens, True, by_tokens, by_passes])
    starts = sorted(_grid(points, scale, free), key=itemgetter(0))[:STARTS]
    found = [_refine(start, points, scale, free) for _, start in starts]
    _, best = min(found, key=itemgetter(0))
    return _law(best, scale, by_passes)


def at_bound(law: LossLaw) -> list[str]:
    """The exponents that hit a bound of the fit, so that the runs do not determine them."""
    return [name for name in EXPONENTS if _is_at_bound(name, getattr(law, name))]


def ends_at_bound(fit: Fit[LossLaw]) -> list[str]:
    """The exponents of which an end of the interval, but not the value, is at a bound."""
    inside = [name for name in EXPONENTS if name not in at_bound(fit.law)]
    ends = {name: fit.interval(name) for name in inside}
    return [n for n, i in ends.items() if _is_at_bound(n, i.low) or _is_at_bound(n, i.high)]


def _is_at_bound(name: str, value: float) -> bool:
    place = 3 + EXPONENTS.index(name)
    low, high = LOWEST[place], HIGHEST[place]
    near = 0.01 * (high - low)
    return value <= low + near or value >= high - near  # nan is neither


def _grid(points: Points, scale: _Scale, free: Any) -> list[tuple[float, Array]]:
    """(cost, constants) at each grid point; E, A and B by non-negative least squares."""
    found = []
    betas = GRID["beta"] if free[4] else (1.0,)
    phis = GRID["phi"] if free[5] else (0.0,)
    for alpha, beta, phi in product(GRID["alpha"], betas, phis):
        x, y = _features(points, scale, phi)
        columns = np.stack([np.ones_like(x), x**-alpha, y**-beta * free[2]], axis=1)
        relative = columns / points.loss[:, None]  # residuals of about log(predicted / measured)
        (E, A, B), _ = nnls(relative, np.ones(len(points)))
        predicted = columns @ np.array([E, A, B])
        if (predicted > 0).all():
            cost = _huber(np.log(predicted / points.loss))
            found.append((cost, np.array([E, A, B, alpha, beta, phi])))
    return found


def _features(points: Points, scale: _Scale, phi: float) -> tuple[Array, Array]:
    size = points.once + points.passes**phi * points.looped
    return size / scale.size, points.tokens / scale.tokens


def _huber(residuals: Array) -> float:
    z = np.abs(residuals) / HUBER
    return float(np.where(z <= 1, 0.5 * z**2, z - 0.5).mean())


def _refine(start: Array, points: Points, scale: _Scale, free: Any) -> tuple[float, Array]:
    """(cost, constants) where the Huber loss is lowest near a start; constants that are not free
    stay fixed.
    """

    def whole(some: Array) -> Array:
        theta = start.copy()
        theta[free] = some
        return theta

    def residuals(some: Array) -> Array:
        E, A, B, alpha, beta, phi = whole(some)
        x, y = _features(points, scale, phi)
        return np.log((E + A * x**-alpha + B * y**-beta) / points.loss)

    def jacobian(some: Array) -> Array:
        E, A, B, alpha, beta, phi = whole(some)
        x, y = _features(points, scale, phi)
        of_size, of_text = x**-alpha, y**-beta
        of_passes = points.passes**phi * points.looped / scale.size * np.log(points.passes)
        columns = (
            np.ones_like(x), of_size, of_text, -A * of_size * np.log(x),
            -B * of_text * np.log(y), -A * alpha * of_size / x * of_passes,
        )  # fmt: skip
        predicted = E + A * of_size + B * of_text
        return (np.stack(columns, axis=1) / predicted[:, None])[:, free]

    lowest, highest = np.array(LOWEST), np.array(HIGHEST)
    inside = np.clip(start, lowest + 1e-6, highest - 1e-6)
    found = least_squares(
        residuals, inside[free], jacobian, bounds=(lowest[free], highest[free]),
        loss="huber", f_scale=HUBER, x_scale="jac", max_nfev=200, **EXACT,
    )  # fmt: skip
    return _huber(residuals(found.x)), whole(found.x)


def _law(theta: Array, scale: _Scale, by_passes: bool) -> LossLaw:
    E, A, B, alpha, beta, phi = map(float, theta)
    A, B = A * scale.size**alpha, B * scale.tokens**beta
    return LossLaw(E, A, B, alpha, beta, phi if by_passes else float("nan"))


def fit_depth(points: DepthPoints, chance: float) -> DepthLaw:
    """Fits the law of accuracy by depth by least squares; constants of what does not vary are 0."""
    scale = _Scale.of(points)
    base = DepthLaw(
        h=0.0, psi=0.0, a=0.0, b=0.0, s=1.0, chance=chance, N0=scale.size, D0=scale.tokens
    )
    names = ["h", "s"]
    names += ["psi"] if len(np.unique(points.passes)) > 1 else []
    names += ["a"] if len(np.unique(points.parameters)) > 1 else []
    names += ["b"] if len(np.unique(points.tokens)) > 1 else []

    def law(values: Array) -> DepthLaw:
        return replace(base, **dict(zip(names, map(float, values), strict=True)))

    def residuals(values: Array) -> Array:
        return law(values).at(points) - points.accuracy

    lowest = [1e-2 if name == "s" else -30.0 for name in names]
    highest = [50.0 if name == "s" else 30.0 for name in names]
    found = [
        least_squares(
            residuals, [h, s] + [0.1] * (len(names) - 2), bounds=(lowest, highest), **EXACT
        )
        for h, s in ((0.0, 1.0), (1.0, 4.0), (3.0, 1.0))
    ]
    return law(min(found, key=lambda result: result.cost).x)


def with_intervals(points: P, fit: Callable[[P], L], *, draws: int = 200) -> Fit[L]:
    """A fit to all runs, and to `draws` bootstrap samples: of the seeds, and of each seed's runs.

    Samples that determine fewer constants than all runs do (only one size or one N) are left out: a
    constant that they do not determine would count as 0.
    """
    law, random = fit(points), np.random.default_rng(0)  # of no runs nothing is drawn
    by_seed = [
        [np.flatnonzero(points.run == run) for run in np.unique(points.run[points.seed == seed])]
        for seed in np.unique(points.seed)
    ]
    resampled, told_apart = [], _told_apart(points)
    for _ in range(draws):
        seeds = [by_seed[i] for i in random.integers(len(by_seed), size=len(by_seed))]
        runs = [rows[i] for rows in seeds for i in random.integers(len(rows), size=len(rows))]
        sample = points.of(np.concatenate(runs))
        if _told_apart(sample) < told_apart:
            continue
        try:
            resampled.append(fit(sample))
        except UserError:
            continue
    return Fit(law, resampled)


def _told_apart(points: Points) -> int:
    """The number of independently varying factors among size, text and N, plus one."""
    along = np.log([points.parameters, points.tokens, points.passes])
    return int(np.linalg.matrix_rank(np.vstack([np.ones(len(points)), along])))


def left_out(points: P, fit: Callable[[P], L]) -> dict[int, L | None]:
    """For each rung, the law fitted to the others; None if they are too few."""
    return {int(r): _or_none(points.of(points.rung != r), fit) for r in np.unique(points.rung)}


def from_below(points: P, fit: Callable[[P], L], rung: int) -> L | None:
    """The law fitted to the rungs below one; None if they are too few."""
    below = points.of(points.rung < rung)
    return _or_none(below, fit) if len(np.unique(below.rung)) > 1 else None


def _or_none(points: P, fit: Callable[[P], L]) -> L | None:
    try:
        return fit(points) if len(points) else None
    except UserError:
        return None
