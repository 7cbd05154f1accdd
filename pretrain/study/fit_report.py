"""Writes fit.md and fit.html: the laws of a study in text, tables with intervals, and plots."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from pretrain.errors import UserError
from pretrain.files import write_atomically
from pretrain.page import write_markdown_page
from pretrain.plots import COLOURS, figure
from pretrain.study.fit import (
    Fit,
    L,
    P,
    at_bound,
    ends_at_bound,
    fit_depth,
    fit_loss,
    left_out,
    with_intervals,
)
from pretrain.study.frontier import REACH, FrontierArm, exchange, frontier
from pretrain.study.ladder import LadderRun
from pretrain.study.law import LOOPED_DEPTH, DepthLaw, DepthPoints, LossLaw, Points
from pretrain.study.predictions import Prediction, predict_all, prediction_table, write_predictions
from pretrain.study.scale import Finished, depth_points, points, write_results_csv
from pretrain.tables import table

CONSTANTS = ("E", "A", "B", "alpha", "beta", "phi")
MAX_NAMED = 12  # missing runs
BUDGETS = 6  # of FLOPs in the table of the frontier
Lines = list[str]


def write_fit(
    runs: Sequence[LadderRun],
    done: Sequence[Finished],
    folder: Path,
    title: str,
    chance: float,
    draws: int = 200,
) -> str:
    """Writes the report on the finished runs; returns the text of fit.md.

    Args:
        chance: accuracy of guessing. draws: of the bootstrap.
    """
    write_results_csv(done, folder / "results.csv")
    predicted = predict_all(runs, done, chance)
    write_predictions(predicted, folder / "predictions.csv")
    parts = [f"# {title}", _what_is_there(runs, done), *_predictions(predicted)]
    windows = sorted({d.of.window for d in done})
    fits: dict[int, Fit[LossLaw]] = {}
    for window in windows:
        mine = points([d for d in done if d.of.window == window])
        try:
            fits[window] = with_intervals(mine, fit_loss, draws=draws)
        except UserError as error:
            parts.append(f"L = {window}: no law: {error}.")
            continue
        parts += _law(fits[window], mine, window)
    if fits:
        parts += _frontier(fits, done, folder)
    if (by_depth := depth_points(done)) is not None:
        parts += _depth(by_depth, chance, folder, draws)
    text = "\n\n".join(parts) + "\n"
    write_atomically(folder / "fit.md", text)
    write_markdown_page(folder / "fit.html", text)
    return text


def _what_is_there(runs: Sequence[LadderRun], done: Sequence[Finished]) -> str:
    have = {d.of.run.name for d in done}
    missing = [r.run.name for r in runs if r.run.name not in have]
    said = f"{len(done)} of {len(runs)} runs are done (each token budget of a size counts as one)."
    if diverged := [d.of.run.name for d in done if d.diverged]:
        said += f" Diverged, and left out of the laws: {', '.join(diverged)}."
    more = f" and {len(missing) - MAX_NAMED} more" if len(missing) > MAX_NAMED else ""
    return f"{said} Missing: {', '.join(missing[:MAX_NAMED])}{more}." if missing else said


def _predictions(predicted: Sequence[Prediction]) -> Lines:
    if not predicted:
        return ["No rung is predicted yet: that takes two finished rungs below it."]
    errors = [
        [abs(p.error) for p in predicted if p.measured and (p.measure == "loss") == of_loss]
        for of_loss in (True, False)
    ]
    off = [f"{np.mean(errors[0]):.1%} of the loss"] if errors[0] else []
    off += [f"{100 * np.mean(errors[1]):.1f} points of accuracy"] if errors[1] else []
    mean = f" Mean error: {', '.join(off)}." if off else ""
    return [
        "## Each rung, predicted from those below",
        f"Predicted by laws fitted to the rungs below alone.{mean}",
        table(*prediction_table(predicted)),
    ]


def _law(fit: Fit[LossLaw], found: Points, window: int) -> Lines:
    off = np.abs(np.log(fit.law.at(found) / found.loss))
    known = [name for name in CONSTANTS if not np.isnan(getattr(fit.law, name))]
    if _read_as_much(found.tokens):
        known = [name for name in known if name not in ("B", "beta")]
    rows = [[name, str(fit.interval(name))] for name in known]
    phi = "All runs made the same number of passes, so they do not determine phi."
    if "phi" in known:
        phi = (
            f"phi = {fit.interval('phi')}; published for looped depth on text: {LOOPED_DEPTH} "
            "(arXiv 2604.21106)."
        )
    return [
        f"## Loss, L = {window}",
        "L = E + A (N_once + N^phi N_loop)^-alpha + B D^-beta, in nats; 95 % intervals by "
        "bootstrap over seeds and the runs of each. Median error of the fit: "
        f"{np.median(off):.1%} of the loss.",
        table(["constant", "value"], rows),
        phi,
        *_doubts(fit, found),
        *_without(
            found,
            fit_loss,
            lambda law, its: f"{np.abs(law.at(its) / its.loss - 1).mean():.1%}",
        ),
    ]


def _doubts(fit: Fit[LossLaw], found: Points) -> Lines:
    """What these runs do not determine."""
    doubts = []
    if names := at_bound(fit.law):
        doubts.append(
            f"At a bound of the fit, so that the runs do not determine them: {', '.join(names)}."
        )
    if names := ends_at_bound(fit):
        doubts.append(f"Intervals that are cut off at a bound of the fit: {', '.join(names)}.")
    if _read_as_much(found.tokens):
        doubts.append(
            "All runs read the same number of tokens, so they do not determine B and beta, what "
            "more text gives, or which N is best at equal FLOPs; E includes what a text of this "
            "length leaves."
        )
    elif max(len(np.unique(found.tokens[found.rung == n])) for n in np.unique(found.rung)) < 3:
        doubts.append(
            "Fewer than three token budgets per size do not separate E, B and beta: what more "
            "text gives, and which N is best beyond the text that was read, are not known."
        )
    return doubts


def _read_as_much(tokens: Iterable[float]) -> bool:
    return len(set(tokens)) == 1


def _without(found: P, fit: Callable[[P], L], error: Callable[[L, P], str]) -> Lines:
    """Each rung predicted by the law of the others; empty if those are too few."""
    laws = left_out(found, fit).items()
    rows = [[str(n), error(law, found.of(found.rung == n))] for n, law in laws if law]
    if not rows:
        return []
    return [
        "Each rung left out, and predicted from all others:",
        table(["rung", "mean error"], rows),
    ]


def arms_of(done: Sequence[Finished]) -> list[FrontierArm]:
    """The ways to spend FLOPs that have runs at every rung, by window and N."""
    rungs = sorted({d.of.rung for d in done})
    arms = []
    for window, passes in sorted({(d.of.window, d.of.passes) for d in done}):
        mine = {d.of.rung: d for d in done if (d.of.window, d.of.passes) == (window, passes)}
        if len(mine) == len(rungs):
            each = [mine[n] for n in rungs]
            once = np.array([d.size.once for d in each], float)
            looped = np.array([d.size.looped for d in each], float)
            cost = np.array([d.size.flops / d.size.tokens for d in each])
            read = [d.size.tokens for d in done if (d.of.passes, d.of.window) == (passes, window)]
            arms.append(FrontierArm(passes, window, once, looped, cost, (min(read), max(read))))
    return arms


def _frontier(fits: Mapping[int, Fit[LossLaw]], done: Sequence[Finished], folder: Path) -> Lines:
    told = {w for w in fits if not _read_as_much(d.size.tokens for d in done if d.of.window == w)}
    arms = [arm for arm in arms_of(done) if arm.window in told]
    there = {(arm.window, arm.passes) for arm in arms}
    ran = {(d.of.window, d.of.passes) for d in done if d.of.window in told}
    lacking = [f"N = {n}, L = {window}" for window, n in sorted(ran - there)]
    said = f"Not compared, because runs are missing at some rung: {'; '.join(lacking)}."
    absent = [said] if lacking else []
    if len(arms) < 2:
        return ["## At equal FLOPs", *absent] if absent else []
    spent = [d.size.flops for d in done]
    budgets = np.geomspace(min(spent), REACH * max(spent), BUDGETS)
    best = [frontier(fits, arms, float(flops)) for flops in budgets]
    rows = []
    for at in best:
        for b in filter(None, at):
            name = f"{b.flops:.2g} FLOPs: N = {b.arm.passes}, L = {b.arm.window}"
            size = f"{b.parameters:,.0f}"
            rows.append([name, str(b.loss), size, f"{b.tokens:.3g}", f"{b.wins:.0%}"])
    with figure(folder / "frontier.png", _legend(arms), panels=1, width=7.6) as (axis,):
        for i in range(len(arms)):
            mine = [found for at in best if (found := at[i])]
            flops, colour = [b.flops for b in mine], COLOURS[i % len(COLOURS)]
            axis.plot(flops, [b.loss.value for b in mine], color=colour)
            axis.fill_between(
                flops, [b.loss.low for b in mine], [b.loss.high for b in mine],
                color=colour, alpha=0.15, linewidth=0,
            )  # fmt: skip
        axis.set(
            title="The lowest loss at equal FLOPs", xlabel="training FLOPs", ylabel="nats",
            xscale="log",
        )  # fmt: skip
    parts = [
        "## At equal FLOPs",
        "The best size and amount of text for each N, by the law; wins: share of resampled laws in "
        f"which this N has the lowest loss. Sizes and text are at most {REACH:g} times those of "
        "the runs, text no less; an N that cannot spend that many FLOPs, or that few, is left out. "
        "Nothing beyond the FLOPs of the runs was tried.",
        *absent,
        table(["", "loss", "parameters", "tokens", "wins"], rows),
        "![frontier](frontier.png)",
    ]
    return parts + _exchange(fits, arms, done)


def _exchange(
    fits: Mapping[int, Fit[LossLaw]], arms: list[FrontierArm], done: Sequence[Finished]
) -> Lines:
    window = arms[0].window
    mine = [arm for arm in arms if arm.window == window]
    if mine[0].passes != 1 or len(mine) < 2:
        return []
    place = len(mine[0].once) // 2
    number = sorted({d.of.rung for d in done})[place]
    tokens = max(d.size.tokens for d in done if d.of.rung == number)
    gains = exchange(fits, [*mine, *(arm for arm in arms if arm.window != window)], place, tokens)
    return [
        f"How much doubling the FLOPs lowers the loss of rung {number} with N = 1 (nats):",
        table(["way", "less loss"], [[way, str(gain)] for way, gain in gains.items()]),
    ]


def _legend(arms: Sequence[FrontierArm]) -> list[tuple[str, str]]:
    several = len({arm.window for arm in arms}) > 1
    return [
        (f"N = {a.passes}" + (f", L = {a.window}" if several else ""), COLOURS[i % len(COLOURS)])
        for i, a in enumerate(arms)
    ]


def _depth(found: DepthPoints, chance: float, folder: Path, draws: int) -> Lines:
    fit: Fit[DepthLaw] = with_intervals(found, lambda p: fit_depth(p, chance), draws=draws)
    off = np.abs(fit.law.at(found) - found.accuracy)
    passes = sorted(set(found.passes))
    read = {size: found.tokens[found.parameters == size].max() for size in set(found.parameters)}
    with figure(
        folder / "depth.png",
        [(f"N = {n:g}", COLOURS[i]) for i, n in enumerate(passes)], panels=1, width=7.6,
    ) as (axis,):  # fmt: skip
        for i, n in enumerate(passes):
            sizes = sorted(set(found.parameters[found.passes == n]))
            line = np.array([_horizon(fit.law, s, n, read[s]) for s in sizes])
            axis.plot(sizes, line, "o-", color=COLOURS[i])
        axis.set(
            title="Horizon: the depth at which half is right", xlabel="parameters", xscale="log",
            ylabel="depth", yscale="log",
        )  # fmt: skip
    meaning = {
        "psi": "doublings of the horizon per doubling of N",
        "a": "per doubling of the parameters",
        "b": "per doubling of the tokens",
        "s": "how sharply accuracy falls beyond it",
    }
    along = {"psi": found.passes, "a": found.parameters, "b": found.tokens, "s": found.depth}
    known = [name for name in meaning if len(np.unique(along[name])) > 1]
    rows = [[name, str(fit.interval(name)), meaning[name]] for name in known]
    return [
        "## Accuracy by depth",
        f"Half-way from chance ({chance:.3g}) to 1 at depth 2^h, h = h_0 + psi log2 N + a log2 "
        f"(parameters) + b log2 (tokens). Mean error: {off.mean():.3f}.",
        table(["constant", "value", "meaning"], rows),
        *_without(
            found,
            lambda p: fit_depth(p, chance),
            lambda law, its: f"{100 * np.abs(law.at(its) - its.accuracy).mean():.1f} points",
        ),
        "![depth](depth.png)",
    ]


def _horizon(law: DepthLaw, parameters: float, passes: float, tokens: float) -> float:
    each = (np.array([float(v)]) for v in (parameters, passes, tokens))
    return float(2 ** law.horizon(*each)[0])
