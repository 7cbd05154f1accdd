"""Summarises a study: the verdict, one table, and everything as CSV."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import pairwise

from pretrain.study.intervals import Mean, mean, paired
from pretrain.study.results import Arm, Result, measures, shown_name
from pretrain.tables import as_csv

FINAL = ("arm", "label", "N", "seed", "tested_at", "measure", "value", "tokens", "flops", "seconds")
CURVES = ("arm", "N", "seed", "step", "tokens", "flops", "seconds", "measure", "value")


def final_csv(results: Sequence[Result]) -> str:
    """A line for each run, N at test and measure."""
    rows = [
        (r.arm.name, r.arm.label, r.arm.passes, r.seed, n, name, value, *_spent(r))
        for r in results
        for n, scores in sorted(r.scores.items())
        for name, value in scores.items()
    ]
    return as_csv(FINAL, rows)


def curves_csv(results: Sequence[Result]) -> str:
    """A line for each run, intermediate evaluation and measure."""
    rows = [
        (r.arm.name, r.arm.passes, r.seed, step)
        + tuple(r.curve.at(step, axis) for axis in ("tokens", "flops", "seconds"))
        + (name, value)
        for r in results
        for step, scores in r.curve.evaluated
        for name, value in scores.items()
    ]
    return as_csv(CURVES, rows)


def _spent(r: Result) -> tuple[float, float, float]:
    return r.curve.tokens[-1], r.curve.flops[-1], r.curve.seconds[-1]


def by_arm(results: Sequence[Result]) -> dict[Arm, list[Result]]:
    """Results by arm, in order of first appearance; seeds in order."""
    found: dict[Arm, list[Result]] = {}
    for r in results:
        found.setdefault(r.arm, []).append(r)
    return {arm: sorted(rs, key=lambda r: r.seed) for arm, rs in found.items()}


def scores(results: Sequence[Result], measure: str, tested_at: int | None = None) -> list[float]:
    """A measure of one arm, by seed; at the N that it was trained with, or at another. nan for a
    run whose loss is nan there: its answers mean nothing.
    """
    found = [r.scores[tested_at or r.passes] for r in results]
    return [math.nan if math.isnan(s["loss"]) else s.get(measure, math.nan) for s in found]


def main_table(
    results: Sequence[Result], planned: Sequence[Arm] = (), failed: Collection[Arm] = ()
) -> tuple[list[str], list[list[str]]]:
    """Headers and rows: means with 95 % intervals, and cost, of each arm; then of arms at other N
    at test; last the arms without a finished run, because they failed or were not run.
    """
    names, arms = measures(results), by_arm(results)
    headers = ["", *map(shown_name, names), "tokens", "FLOPs", "seeds"]
    lines = []
    for arm, rs in arms.items():
        cost = [f"{mean([_spent(r)[i] for r in rs]).value:.3g}" for i in (0, 1)]
        cells = [as_cell(scores(rs, name), name) for name in names]
        lines.append([arm.label, *cells, *cost, str(len(rs))])
    for arm, rs in arms.items():
        for n in sorted(set.intersection(*(set(r.scores) for r in rs)) - {rs[0].passes}):
            cells = [as_cell(scores(rs, name, n), name) for name in names]
            lines.append([f"{arm.label}, tested with N = {n}", *cells, "", "", str(len(rs))])
    for arm in planned:
        if arm not in arms:
            why = "failed" if arm in failed else "not run"
            lines.append([arm.label, *[why] * len(names), "", "", "0"])
    return headers, lines


def bits_table(results: Sequence[Result]) -> tuple[list[str], list[list[str]]] | None:
    """For text, bits per byte of each arm by window of the sequence; None for other data."""
    if not all(r.bits for r in results):
        return None
    windows = len(results[0].bits[results[0].passes]) - 1
    first, of_first = next(iter(by_arm(results).items()))
    headers = ["bits per byte", *(f"window {w}" for w in range(1, windows + 1)), "all"]
    headers.append(f"nats gained on {first.label}")
    lines = []
    for arm, rs in by_arm(results).items():
        cells = [_bits(rs, w) for w in range(windows + 1)]
        gained, common = "", {r.seed for r in of_first} & {r.seed for r in rs}
        if arm != first and common:
            gain = _by_row(of_first, rs) or _gain(of_first, rs, "loss")
            gained = as_cell(gain.values, "loss")
        lines.append([arm.label, *cells, gained])
    return headers, lines


def _bits(results: Sequence[Result], window: int) -> str:
    """The cell of one arm in one window; "-" if no byte of the held-out text is scored there."""
    found = [math.nan if r.diverged else r.bits[r.passes][window] for r in results]
    values = [b for b in found if b is not None]
    return as_cell(values, "loss") if len(values) == len(found) else "-"


def as_cell(values: Sequence[float], measure: str) -> str:
    """ "81.3 ± 4.2" in percent; a loss in nats. For two seeds both values: "64.1 (30.3, 97.9)".
    "1 of 3 diverged" if a value is nan: the mean of the others would be too good.
    """
    if diverged := sum(map(math.isnan, values)):
        return f"{diverged} of {len(values)} diverged"
    scale, digits = (1, 3) if measure == "loss" else (100, 1)
    m = mean(values)
    half = {1: "", 2: f" ({_each(m, scale, digits)})"}.get(
        m.count, f" ± {scale * m.half:.{digits}f}"
    )
    return f"{scale * m.value:.{digits}f}{half}"


def _each(m: Mean, scale: int, digits: int, sign: str = "") -> str:
    return ", ".join(f"{scale * value:{sign}.{digits}f}" for value in m.values)


def verdict(results: Sequence[Result]) -> list[str]:
    """The verdict in words: are more passes better at the largest depth, by how much, how
    surely?
    """
    deepest = measures(results)[-1]
    arms = {arm: rs for arm, rs in by_arm(results).items() if not arm.is_control}
    ordered = sorted(arms, key=lambda arm: arm.passes)
    if len(ordered) < 2:
        return ["A single N says nothing about sleep."]
    chain = " < ".join(arm.label for arm in ordered)
    pairs = [*pairwise(ordered), *((ordered[0], more) for more in ordered[2:])]
    for a, b in pairs:
        if not _seeds(arms[a]) & _seeds(arms[b]):
            return [f"{chain}: {a.label} and {b.label} have no seed in common yet."]
    steps = [_gain(arms[a], arms[b], deepest) for a, b in pairwise(ordered)]
    where = "in held-out loss" if deepest == "loss" else f"at {shown_name(deepest)}, the deepest"
    if any(math.isnan(step.value) for step in steps):
        first = f"{chain} {where}: cannot be decided, because a run has diverged."
    elif all(step.is_above_zero for step in steps):
        first = f"{chain} {where}: yes, and every step is significant."
    elif any(step.is_below_zero for step in steps):
        first = f"{chain} {where}: no."
    elif any(step.count < 3 for step in steps):
        order = "yes" if all(step.value > 0 for step in steps) else "not"
        first = f"{chain} {where}: {order} in the means, of too few seeds to say how surely."
    elif all(step.value > 0 for step in steps):
        first = f"{chain} {where}: yes in the means, but not every step is significant."
    else:
        first = f"{chain} {where}: not in the means, but no step is significantly worse."
    sentences = []
    for a, b in pairs:
        by, sure = _difference(arms[a], arms[b], deepest)
        sentences.append(f"{b.label} over {a.label}: {f'{by} ({sure})' if by else sure}.")
    return [first, *sentences]


def controls_table(results: Sequence[Result]) -> tuple[list[str], list[list[str]]] | None:
    """By how much each N is ahead of each of its controls on what is deepest, of the seeds that
    both have; None without controls.
    """
    deepest, found = measures(results)[-1], by_arm(results)
    plain = {arm.passes: arm for arm in found if not arm.is_control}
    rows = []
    for control, less in found.items():
        own = plain.get(control.passes)
        if control.is_control and own and _seeds(less) & _seeds(found[own]):
            of_both = _difference(less, found[own], deepest)
            rows.append([f"{own.label} over {control.label}", *of_both])
    where = "held-out loss" if deepest == "loss" else shown_name(deepest)
    return (["compared with controls", where, "how sure"], rows) if rows else None


def _gain(less: Sequence[Result], more: Sequence[Result], measure: str) -> Mean:
    """By how much more passes are better, paired by seed, over the seeds that both have."""
    both = _seeds(less) & _seeds(more)
    few, many = (scores([r for r in rs if r.seed in both], measure) for rs in (less, more))
    return paired(few, many) if measure == "loss" else paired(many, few)


def _seeds(results: Sequence[Result]) -> set[int]:
    return {r.seed for r in results}


def _by_row(less: Sequence[Result], more: Sequence[Result]) -> Mean | None:
    """By how much more passes lower the loss, paired by row of the held-out text; for one seed that
    both have.
    """
    both = _seeds(less) & _seeds(more)
    if len(both) != 1:
        return None
    one, other = (next(r for r in rs if r.seed in both) for rs in (less, more))
    if one.diverged or other.diverged:  # of some rows there is no loss
        return None
    return paired(one.rows, other.rows) if one.rows and other.rows else None


def _difference(less: Sequence[Result], more: Sequence[Result], measure: str) -> tuple[str, str]:
    """ "+71.0 points", and how sure that is; "" for the first if a run has diverged."""
    gain = _gain(less, more, measure)
    if math.isnan(gain.value):
        return "", "a run has diverged"
    in_loss = measure == "loss"
    scale, digits, unit = (1, 3, "nats") if in_loss else (100, 1, "points")
    by_row = _by_row(less, more) if in_loss else None  # of one seed, over rows of held-out text
    if by_row is not None:
        interval = f"95 % interval {by_row.low:.3g} to {by_row.high:.3g}"
        sure = f"one seed; over {by_row.count} held-out rows, paired, {interval}"
    elif gain.count == 1:
        sure = "one seed: no interval"
    elif gain.count == 2:
        sure = f"two seeds: {_each(gain, scale, digits, '+')}: too few for an interval"
    else:
        found = "significantly worse" if gain.is_below_zero else "not significant"
        found = "significant" if gain.is_above_zero else found
        interval = f"{scale * gain.low:.3g} to {scale * gain.high:.3g}"
        sure = f"95 % interval {interval}, {gain.count} seeds paired: {found}"
    return f"{scale * gain.value:+.{digits}f} {unit}", sure
