"""Compares runs: plots and one table, from what their trainers logged."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.config.load import read_tables
from pretrain.files import write_atomically
from pretrain.inside import (
    legend,
    plot_by_step,
    plot_heads,
    plot_passes,
    plot_state,
    plot_throughput,
)
from pretrain.logged import DEPTHS, Row, RunMetrics, depth_of, read_run
from pretrain.page import write_page
from pretrain.plots import COLOURS, INK, figure, smooth
from pretrain.tables import table

LABELS = {"exact": "all answers right", "label": "one label right"}


def report(run_dirs: Sequence[Path], out: Path) -> None:
    """Compares runs: writes OUT/report.html, OUT/report.md and its plots, and prints the table.

    The plots are those of loss.png, loss_by_place.png, loss_by_set.png, accuracy_by_hops.png /
    accuracy_by_op.png / accuracy.png (tasks), passes.png, state.png, heads.png and throughput.png
    for which the runs have data.
    """
    labels, notes = _labels(run_dirs), _judged_otherwise(run_dirs)
    runs = _coloured([read_run(*each) for each in zip(labels, run_dirs, strict=True)])
    out.mkdir(parents=True, exist_ok=True)
    pictures = _draw(runs, out)
    headers, rows = _summary(runs)
    images = [f"![{p.stem.replace('_', ' ')}]({p.name})" for p in pictures]
    written = table(headers, [[_as_typed(cell) for cell in row] for row in rows])
    write_atomically(out / "report.md", "\n\n".join(["# Report", *notes, written, *images]) + "\n")
    title = f"Report: {', '.join(run.label for run in runs)}"
    write_page(out / "report.html", title, notes, [(headers, rows)], pictures)
    print("\n\n".join([*notes, table(headers, rows)]))
    pages = [out / "report.md", out / "report.html"]
    print("\n" + "\n".join(f"wrote {p}" for p in [*pictures, *pages]))


def _judged_otherwise(run_dirs: Sequence[Path]) -> list[str]:
    """A line if runs are evaluated on different rows: the settings in which they differ."""
    judged, tasks = [], []
    for run in run_dirs:
        if (path := run / "config.toml").is_file():
            tables = read_tables(path)
            data, train = tables.get("data", {}), tables.get("train", {})
            task = data.get("task", "text")
            rows = [train.get("eval_batches"), train.get("batch")]
            tasks.append({f"{task}.{name}": value for name, value in tables.get(task, {}).items()})
            judged.append({
                "data.task": task,
                "data.heldout": data.get("heldout") and Path(data["heldout"]).resolve(),
                **{
                    f"{each['name']} of data.heldout_sets": Path(each["path"]).resolve()
                    for each in data.get("heldout_sets", [])
                },
                "data.windows": data.get("windows"),
                "sleep.window": tables.get("sleep", {}).get("window"),
                # of text as many rows are the same rows; a task draws each batch from its own seed
                "train.eval_batches x train.batch": math.prod(rows)
                if task == "text" and None not in rows else rows,
            })  # fmt: skip
    differ = _that_differ(judged)
    if of_task := [] if "data.task" in differ else _that_differ(tasks):
        return [
            f"Evaluated on different problems: {', '.join([*differ, *of_task])} differ. Do not "
            "compare held-out losses and accuracies."
        ]
    if not differ:
        return []
    return [
        f"Evaluated on different rows: {', '.join(differ)} differ. Do not compare held-out losses. "
        "To evaluate them alike: `hypnos eval RUN data.heldout=... train.eval_batches=...`."
    ]


def _that_differ(runs: Sequence[dict[str, Any]]) -> list[str]:
    """The names whose values differ between the runs that have them."""
    values: dict[str, list[Any]] = {}
    for run in runs:
        for name, value in run.items():
            values.setdefault(name, []).append(value)
    return [name for name, each in values.items() if any(value != each[0] for value in each)]


def _draw(runs: list[RunMetrics], out: Path) -> dict[Path, str]:
    """Writes the plots for which the runs have data; returns their captions."""
    pictures = {out / "loss.png": "Training loss by step, smoothed; points: held-out loss."}
    plot_loss(runs, out / "loss.png")
    if evaluated := [run for run in runs if run.evaluations]:
        plot_loss_by_place(evaluated, out / "loss_by_place.png")
        pictures[out / "loss_by_place.png"] = (
            "Held-out loss at the last evaluation, by window and by position in a window. Dashed: "
            "the same model with one pass; thin: with each number of passes in between."
        )
    if names := _sets(runs):
        pictures[out / "loss_by_set.png"] = "Held-out loss of each of data.heldout_sets, by step."
        plot_loss_by_set(runs, names, out / "loss_by_set.png")
    if any(r.accuracy for r in runs):
        kind = next((k for k in DEPTHS if any(_by_depth(r.accuracy, k) for r in runs)), None)
        path = out / (f"accuracy_by_{kind}.png" if kind else "accuracy.png")
        plot_accuracy(runs, kind, path)
        pictures[path] = "Accuracy at the last evaluation (left) and during training (right)."
    for name, draw, key, caption in INSIDE:
        if logged := [r for r in runs if any(row.get(key, []) != [] for row in r.train)]:
            draw(logged, out / f"{name}.png")
            pictures[out / f"{name}.png"] = caption
    return pictures


# each: its file, how it is drawn, what a run must have logged, its caption
INSIDE = (
    (
        "passes", plot_passes, "state_norm",
        "At the last logging step, over all windows and the loop's delta blocks: how much each "
        "pass changes S, and the gradient that reaches S after it.",
    ),
    ("state", plot_state, "state_norm", "With a retention near 0, nothing written to S lasts."),
    ("heads", plot_heads, "retention_per_head", "Each point is one head."),
    (
        "throughput", plot_throughput, "wake_tokens_per_s",
        "Tokens read in the wake pass, and tokens times the sleep passes (2 to N).",
    ),
)  # fmt: skip


def _as_typed(name: str) -> str:
    """A name escaped for Markdown, inside a table."""
    return re.sub(r"([\\`*_{}\[\]<>|~$])", r"\\\1", name)


def _labels(paths: Sequence[Path]) -> list[str]:
    """The names of the runs' folders; whole paths if names are not unique."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def plot_loss(runs: list[RunMetrics], out: Path) -> None:
    """Training loss by step, smoothed over a faint raw line, and held-out loss as points."""
    with figure(out, legend(runs), panels=1, width=6.6) as (axis,):
        for run in runs:
            plot_by_step(axis, run, "loss")
            _plot_evaluations(axis, run.evaluations, "o", run.colour)
        axis.set(
            title="Loss: training (lines) and held-out (points)",
            xlabel="step",
            ylabel="nats per scored token",
        )
        axis.set_xlim(left=0)


def _plot_evaluations(axis: Any, rows: Sequence[Row], style: str, colour: str) -> None:
    """Held-out loss of each evaluation, by step."""
    steps, losses = [r["step"] for r in rows], [r["loss"] for r in rows]
    axis.plot(steps, losses, style, color=colour, markersize=4, markeredgecolor="white")


def plot_loss_by_place(runs: list[RunMetrics], out: Path) -> None:
    """Held-out loss at the last evaluation, by window of the sequence and by position in the
    window.

    For runs with N > 1 the former also shows the loss with one pass (dashed) and with each number
    in between (thin).
    """
    with figure(out, legend(runs), panels=2, width=9.6) as (by_window, by_place):
        for run in runs:
            last = run.evaluations[-1]
            x, y = _present(last["loss_per_window"])
            by_window.plot(x, y, "o-", color=run.colour, markeredgecolor="white")
            for n, row in run.with_fewer.items():
                x, y = _present(row["loss_per_window"])
                style, width = ("o--", 1.0) if n == 1 else ("o-", 0.5)
                by_window.plot(x, y, style, color=run.colour, markersize=3, linewidth=width)
            x, y = _present(last["loss_per_position"])
            by_place.plot(x, y, color=run.colour, alpha=0.25, linewidth=0.8)
            by_place.plot(x, smooth(y, len(y) // 48), color=run.colour)
        by_window.set(
            title="Held-out loss by window (dashed: one pass, thin: more)",
            xlabel="window of the sequence",
            ylabel="nats per scored token",
        )
        by_window.xaxis.get_major_locator().set_params(integer=True)
        by_place.set(
            title="Held-out loss by position in the window", xlabel="tokens since the window began"
        )


def plot_loss_by_set(runs: list[RunMetrics], names: Sequence[str], out: Path) -> None:
    """Held-out loss of each further held-out set, by step."""
    with figure(out, legend(runs), panels=len(names), width=max(6.6, 4.8 * len(names))) as axes:
        for axis, name in zip(axes, names, strict=True):
            for run in runs:
                _plot_evaluations(axis, run.of_set(name), "o-", run.colour)
            axis.set(title=f"Held-out loss: {name}", xlabel="step", ylabel="nats per scored token")
            axis.set_xlim(left=0)


def plot_accuracy(runs: list[RunMetrics], kind: str | None, out: Path) -> None:
    """Final accuracy by depth or by name; and by step, that at the largest depth (or first
    name).
    """
    runs = [run for run in runs if (_by_depth(run.accuracy, kind) if kind else run.accuracy)]
    if kind:
        depths = sorted({k for run in runs for k in _by_depth(run.accuracy, kind)})
        names = [f"{kind}_{k}" for k in depths]
        shown, hardest = [str(k) for k in depths], names[-1]
        titles = (
            f"Accuracy by {DEPTHS[kind]}",
            f"Accuracy at {DEPTHS[kind].split(' ')[0]} = {depths[-1]}, by step",
        )
    else:
        names = list(runs[0].accuracy)
        shown, hardest = [LABELS.get(name, name) for name in names], names[0]
        titles = "Accuracy", f"{shown[0].capitalize()}, by step"
    with figure(out, legend(runs), panels=2, width=9.6) as (bars, curves):
        width = 0.8 / len(runs)
        for i, run in enumerate(runs):
            shares = [100 * run.accuracy.get(name, np.nan) for name in names]
            centres = np.arange(len(names)) + (i - (len(runs) - 1) / 2) * width
            drawn = bars.bar(centres, shares, width * 0.92, color=run.colour)
            if len(runs) * len(names) <= 16:
                shown_shares = ["" if np.isnan(share) else f"{share:.0f}" for share in shares]
                bars.bar_label(drawn, shown_shares, padding=2, fontsize=8.5, color=INK)
            curves.plot(
                [r["step"] for r in run.evaluations],
                [100 * r["accuracy"].get(hardest, np.nan) for r in run.evaluations],
                "o-", color=run.colour, markersize=4.5, markeredgecolor="white",
            )  # fmt: skip
        bars.set(
            title=titles[0], xlabel=DEPTHS[kind] if kind else "", ylabel="% right", ylim=(0, 108)
        )
        bars.set_xticks(range(len(names)), shown)
        bars.set_yticks(range(0, 101, 25))
        bars.grid(visible=False, axis="x")
        curves.set(title=titles[1], xlabel="step", ylim=(0, 108))
        curves.set_yticks(range(0, 101, 25))
        curves.set_xlim(left=0)


def _summary(runs: list[RunMetrics]) -> tuple[list[str], list[list[str]]]:
    """The headers and rows of the comparison."""
    names = list(dict.fromkeys(name for run in runs for name in run.accuracy))
    has_tokens = any("tokens" in run.train[-1] for run in runs if run.train)
    sets = _sets(runs)
    has_bytes = any("bits_per_byte" in run.evaluations[-1] for run in runs if run.evaluations)
    headers = [
        "run",
        "N",
        "steps",
        *(["tokens"] if has_tokens else []),
        "training loss",
        "held-out loss",
        *(["bits per byte"] if has_bytes else []),
        *sets,
        *(n.replace("_", " ") for n in names),
    ]
    rows = []
    for run in runs:
        steps = max(r["step"] for r in run.train[-1:] + run.evaluations[-1:])
        tokens = [_last(run.train, steps, "tokens", ",")] if has_tokens else []
        losses = [_last(rows, steps, "loss") for rows in (run.train, run.evaluations)]
        bits = [_last(run.evaluations, steps, "bits_per_byte")] if has_bytes else []
        of_sets = [_last(run.of_set(name), steps, "loss") for name in sets]
        shares = [_percent(run.accuracy.get(name)) for name in names]
        first = [run.label, str(run.passes or "-"), f"{steps:,}"]
        rows.append([*first, *tokens, *losses, *bits, *of_sets, *shares])
    return headers, rows


def _sets(runs: list[RunMetrics]) -> list[str]:
    """Names of the further held-out sets that any run was evaluated on."""
    rows = (row for run in runs for row in run.evaluations)
    return list(dict.fromkeys(name for row in rows for name in row.get("sets", {})))


def _last(rows: list[Row], steps: int, key: str, form: str = ".3f") -> str:
    """The last logged value; in a run in progress it may be of an earlier step, which is named."""
    if not rows or rows[-1].get(key) is None:
        return "-"
    step, last = rows[-1]["step"], f"{rows[-1][key]:{form}}"
    return last if step == steps else f"{last} (step {step:,})"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _by_depth(accuracy: dict[str, float], kind: str) -> dict[int, float]:
    """{4: share} of the accuracies called "hops_4"."""
    return {
        depth: share
        for name, share in accuracy.items()
        if name.startswith(f"{kind}_") and (depth := depth_of(name)) is not None
    }


def _present(values: list[float | None]) -> tuple[list[int], list[float]]:
    """Indices (from 1) and values of those that are not None."""
    kept = [(i, v) for i, v in enumerate(values, start=1) if v is not None]
    return [i for i, _ in kept], [v for _, v in kept]


def _coloured(runs: list[RunMetrics]) -> list[RunMetrics]:
    """Gives each run a colour; the first of several, by convention the baseline, is grey."""
    palette = COLOURS if len(runs) > 1 else COLOURS[1:]
    for i, run in enumerate(runs):
        run.colour = palette[i % len(palette)]
    return runs
