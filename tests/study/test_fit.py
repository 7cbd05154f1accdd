"""Laws from runs: known constants are recovered, intervals contain them, rungs are predicted."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from pretrain.errors import UserError
from pretrain.study.fit import (
    Fit,
    at_bound,
    ends_at_bound,
    fit_depth,
    fit_loss,
    from_below,
    left_out,
    with_intervals,
)
from pretrain.study.frontier import FrontierArm, exchange, frontier
from pretrain.study.law import DepthLaw, DepthPoints, LossLaw, Points

LAW = LossLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28, phi=0.46)
SIZES, PASSES, TOKENS = (1e6, 3e6, 1e7, 3e7), (1.0, 2.0, 4.0), (1e8, 3e8, 1e9)


def made_up(law: LossLaw, noise: float = 0.0, passes: tuple[float, ...] = PASSES) -> Points:
    """Runs that follow a law: 3 in 10 parameters are outside the loop."""
    cells = list(product(enumerate(SIZES), passes, TOKENS))
    size, n, tokens = (
        np.array(v) for v in zip(*((s, n, t) for (_, s), n, t in cells), strict=True)
    )
    loss = law.loss(0.3 * size, 0.7 * size, n, tokens)
    loss *= np.exp(noise * np.random.default_rng(0).standard_normal(len(loss)))
    rung = np.array([r for (r, _), _, _ in cells])
    run = np.arange(len(loss)) // 3
    return Points(0.3 * size, 0.7 * size, n, tokens, loss, rung, run, 0 * run)


@pytest.mark.parametrize("phi", [0.46, -0.2, 1.1])
def test_constants_of_a_law_without_noise_come_back(phi: float) -> None:
    law = LossLaw(1.69, 406.4, 410.7, 0.34, 0.28, phi)
    found = fit_loss(made_up(law))
    for name in ("E", "A", "B", "alpha", "beta", "phi"):
        assert getattr(found, name) == pytest.approx(getattr(law, name), rel=1e-6), name


def test_what_does_not_vary_is_not_fitted() -> None:
    same = made_up(LAW, passes=(4.0,))
    one_n = fit_loss(same)
    assert np.isnan(one_n.phi) and one_n.alpha == pytest.approx(0.34, rel=1e-6)
    assert one_n.at(same) == pytest.approx(same.loss, rel=1e-6)
    points = made_up(LAW)
    one_d = fit_loss(points.of(points.tokens == TOKENS[0]))
    assert one_d.B == 0 and one_d.phi == pytest.approx(0.46, rel=1e-6)
    with pytest.raises(UserError, match="needs 2 sizes"):
        fit_loss(points.of(points.rung == 0))
    few = np.array([0, 1, 3, 9, 18, 35])
    assert fit_loss(points.of(few)).phi == pytest.approx(0.46, rel=1e-6)
    with pytest.raises(UserError, match="6 points, and there are 3 and 5"):
        fit_loss(points.of(few[:-1]))


def test_intervals_hold_what_is_true_and_follow_the_noise() -> None:
    fit = with_intervals(made_up(LAW, 1e-2), fit_loss, draws=8)
    phi, alpha = fit.interval("phi"), fit.interval(lambda law: law.alpha)
    assert phi.low < 0.46 < phi.high and alpha.low < 0.34 < alpha.high
    quiet = with_intervals(made_up(LAW, 1e-4), fit_loss, draws=4).interval("phi")
    assert quiet.high - quiet.low < (phi.high - phi.low) / 10


def test_what_a_seeds_runs_have_in_common_is_in_the_intervals() -> None:
    once = made_up(LAW, 1e-2)
    points = once.of(np.tile(np.arange(len(once)), 3))
    points.seed[:] = np.repeat([0, 1, 2], len(once))
    points.run[:] += points.seed * len(once)
    points.loss[:] *= np.exp(np.array([-0.05, 0.0, 0.05])[points.seed])

    def by_how_much(of: Points) -> LossLaw:
        """A law whose E is the runs' loss relative to the true one: quicker than a fit."""
        return replace(LAW, E=float((of.loss / LAW.at(of)).mean()))

    def width(of: Points) -> float:
        found = with_intervals(of, by_how_much).interval("E")
        return found.high - found.low

    # Of three draws from three seeds, one in 27 takes the lowest alone, and one the highest.
    assert width(points) > 0.09 > 1.5 * width(replace(points, seed=0 * points.seed))


def test_one_run_gone_wrong_moves_nothing() -> None:
    points = made_up(LAW)
    points.loss[5] *= 3
    assert fit_loss(points).phi == pytest.approx(0.46, abs=0.01)


def test_a_rung_is_predicted_by_the_others_or_by_those_below() -> None:
    points = made_up(LAW)
    top = points.of(points.rung == 3)
    law = from_below(points, fit_loss, 3)
    assert law is not None and law.at(top) == pytest.approx(top.loss, rel=1e-6)
    assert from_below(points, fit_loss, 1) is None  # one rung does not determine a line
    assert set(left_out(points, fit_loss)) == {0, 1, 2, 3}
    # the rung's own results have no influence
    points.loss[points.rung == 3] *= 2
    assert from_below(points, fit_loss, 3) == law


def test_depth_that_grows_with_passes() -> None:
    law = DepthLaw(h=1.0, psi=0.8, a=0.3, b=0.4, s=2.5, chance=0.125, N0=1e7, D0=3e8)
    base = made_up(LAW)
    many = base.of(np.repeat(np.arange(len(base)), 4))
    depth = np.tile([1.0, 2.0, 4.0, 8.0], len(base))
    points = DepthPoints(**vars(many), depth=depth, accuracy=np.zeros(len(many)))
    points.accuracy[:] = law.at(points)
    found = fit_depth(points, 0.125)
    for name in ("psi", "a", "b", "s"):
        assert getattr(found, name) == pytest.approx(getattr(law, name), rel=1e-6), name
    assert found.at(points) == pytest.approx(points.accuracy, rel=1e-6)


def test_a_sample_of_one_n_alone_says_nothing_of_passes() -> None:
    law = DepthLaw(h=0.5, psi=0.6, a=0.2, b=0.5, s=3.0, chance=0.2, N0=1e4, D0=1e5)
    runs = list(product((5e3, 2e4), (1.0, 4.0)))
    rows = [(size, n, i, k) for i, (size, n) in enumerate(runs) for k in (1.0, 2.0, 4.0)]
    size, n, run, depth = (np.array(column) for column in zip(*rows, strict=True))
    same = np.ones(len(rows))
    points = DepthPoints(
        0 * same, size, n, 1e5 * same, same, run // 2, run, 0 * run, depth, 0 * same
    )
    points.accuracy[:] = law.at(points)
    fit = with_intervals(points, lambda sample: fit_depth(sample, 0.2), draws=20)
    for constant in (fit.interval("psi"), fit.interval("a")):
        assert constant.low == pytest.approx(constant.high) == pytest.approx(constant.value)


def test_exponents_at_a_bound_are_named() -> None:
    assert at_bound(LAW) == [] and at_bound(replace(LAW, beta=3.99, phi=np.nan)) == ["beta"]
    ends = ((-3, 0.3), (0.4, 0.4), (4, 0.5))
    wide = [replace(LAW, phi=phi, beta=beta) for phi, beta in ends] * 40
    assert ends_at_bound(Fit(LAW, wide)) == ["phi"]
    assert ends_at_bound(Fit(replace(LAW, phi=4.0), wide)) == []  # at_bound already reports it


def test_at_equal_flops_the_law_is_asked_and_the_cost_counted() -> None:
    fit = with_intervals(made_up(LAW, 1e-4), fit_loss, draws=5)
    once, looped = 0.3 * np.array(SIZES), 0.7 * np.array(SIZES)
    arms = [FrontierArm(n, 16, once, looped, 6 * (once + n * looped), (1e7, 1e10)) for n in (1, 4)]
    best = [b for b in frontier({16: fit}, arms, 1e17) if b]
    assert len(best) == 2
    for b in best:
        whole = b.arm.at(np.array([b.parameters]))
        assert float(whole[2][0]) * b.tokens == pytest.approx(1e17)
        others = fit.law.loss(whole[0] * 1.3, whole[1] * 1.3, b.arm.passes, b.tokens / 1.3)
        assert b.loss.value < float(others[0])
    assert sum(b.wins for b in best) == 1
    # a pass that costs its parameters' full FLOPs but is worth only 0.46 of them loses to size
    assert best[0].loss.value < best[1].loss.value and best[0].wins == 1
    # even at its smallest, N = 4 would read less than its shortest run; N = 1 would not
    assert [bool(b) for b in frontier({16: fit}, arms, 1e7 * 6 * SIZES[0])] == [True, False]
    (unsure, _) = frontier({16: replace(fit, resampled=[])}, arms, 1e17)
    assert unsure and np.isnan(unsure.wins) and unsure.loss.value == best[0].loss.value
    # windows twice as long lower the loss by 0.1, and cost a quarter more per token
    law = replace(LAW, E=LAW.E - 0.1)
    there = with_intervals(made_up(law, 1e-4), fit_loss, draws=5)
    arms.append(FrontierArm(1, 32, once, looped, 1.25 * arms[0].flops_per_token, (1e7, 1e10)))
    gains = exchange({16: fit, 32: there}, arms, rung=1, tokens=3e8)
    bigger, text, sleep, longer = (gain.value for gain in gains.values())
    assert bigger > sleep > 0 and text > 0
    assert list(gains)[-1] == "longer windows: L = 32, 1.60 x the tokens"
    start = float(once[1]), float(looped[1]), 1.0
    assert longer == pytest.approx(float(LAW.loss(*start, 3e8) - law.loss(*start, 4.8e8)), rel=0.01)
