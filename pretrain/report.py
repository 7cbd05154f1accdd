"""Runs side by side: plots and one table, from what their trainers logged.

Reads `metrics.jsonl`, one object a line: {"kind": "train" | "eval", "step", "loss", ...}; "eval"
lines come from `pretrain.evaluate.Evaluation` and also hold "passes", "loss_per_window",
"loss_per_position"; a task's "accuracy".
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.errors import UserError
from pretrain.files import parse_json, write_atomically
from pretrain.inside import (
    has_heads,
    has_probes,
    has_throughput,
    plot_heads,
    plot_passes,
    plot_state,
    plot_throughput,
)
from pretrain.page import write_page
from pretrain.plots import COLOURS, INK, figure, smooth

Row = dict[str, Any]
# accuracies named "hops_4" are drawn against 4
DEPTHS = {
    "hops": "hops k",
    "op": "operations in the story",
    "steps": "steps t",
    "length": "length of the word",
    "depth": "depth of the graph",
}
LABELS = {"exact": "all answers right", "label": "one label right"}


@dataclass
class RunMetrics:
    """What one run logged, by step; a step that a resumed run logged again counts once."""

    label: str
    train: list[Row]
    evaluations: list[Row]  # at the largest N that was evaluated, which is the trained one
    with_fewer: dict[int, Row]  # the last evaluation's, by N
    colour: str = COLOURS[1]  # the same in every plot

    @property
    def passes(self) -> int | None:
        return self.evaluations[-1].get("passes") if self.evaluations else None

    @property
    def accuracy(self) -> dict[str, float]:
        """The last evaluation's; empty for text."""
        return self.evaluations[-1].get("accuracy", {}) if self.evaluations else {}


def report(run_dirs: Sequence[Path], out: Path) -> None:
    """Compares runs: writes OUT/report.html, OUT/report.md and its plots, and prints the table.

    Writes those of loss.png, loss_by_place.png, accuracy_by_hops.png / accuracy_by_op.png /
    accuracy.png (tasks), passes.png, state.png, heads.png and throughput.png for which the runs
    have data.
    """
    labels = _labels(run_dirs)
    runs = _coloured([read_run(*each) for each in zip(labels, run_dirs, strict=True)])
    out.mkdir(parents=True, exist_ok=True)
    pictures = _draw(runs, out)
    headers, rows = _summary(runs)
    images = [f"![{p.stem.replace('_', ' ')}]({p.name})" for p in pictures]
    written = table(headers, [[_as_typed(cell) for cell in row] for row in rows])
    write_atomically(out / "report.md", "\n\n".join(["# Report", written, *images]) + "\n")
    title = f"Report: {', '.join(run.label for run in runs)}"
    shown = list(pictures.items())
    write_page(out / "report.html", title, [], [(headers, rows)], shown)
    print(table(headers, rows))
    pages = [out / "report.md", out / "report.html"]
    print("\n" + "\n".join(f"wrote {p}" for p in [*pictures, *pages]))


def _draw(runs: list[RunMetrics], out: Path) -> dict[Path, str]:
    """Writes the pictures for which the runs have data; what each shows, for the page."""
    pictures = {out / "loss.png": "Training loss by step, smoothed; points: held-out loss."}
    plot_loss(runs, out / "loss.png")
    if evaluated := [run for run in runs if run.evaluations]:
        plot_loss_by_place(evaluated, out / "loss_by_place.png")
        pictures[out / "loss_by_place.png"] = (
            "Held-out loss at the last evaluation, by window and by place in a window; dashed: the "
            "same model with one pass, thin: with each number of passes in between."
        )
    if any(r.accuracy for r in runs):
        kind = next((k for k in DEPTHS if any(_by_depth(r.accuracy, k) for r in runs)), None)
        path = out / (f"accuracy_by_{kind}.png" if kind else "accuracy.png")
        plot_accuracy(runs, kind, path)
        pictures[path] = "Answers right at the last evaluation, and on the way there."
    for name, draw, has, caption in INSIDE:
        if logged := [run for run in runs if has(run)]:
            draw(logged, out / f"{name}.png")
            pictures[out / f"{name}.png"] = caption
    return pictures


INSIDE = (
    (
        "passes", plot_passes, has_probes,
        "At the last logging step, over all windows and delta blocks: what each pass changes in S, "
        "and the gradient that comes back to S after it.",
    ),
    ("state", plot_state, has_probes, "Near a retention of 0 nothing that is written stays."),
    ("heads", plot_heads, has_heads, "A point a head."),
    (
        "throughput", plot_throughput, has_throughput,
        "Tokens of the wake pass, and tokens times passes 2 to N over them.",
    ),
)  # fmt: skip


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that also reads well on a terminal: aligned, the first to the left."""
    widths = [max(len(str(line[i])) for line in [headers, *rows]) for i in range(len(headers))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            f"{c:<{w}}" if i == 0 else f"{c:>{w}}"
            for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = "|".join(
        ("-" * (w + 2)) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)
    )
    return "\n".join([line(headers), f"|{rule}|", *map(line, rows)])


def as_csv(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The same for other programs; floats with six digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(headers)
    writer.writerows([f"{v:.6g}" if isinstance(v, float) else v for v in row] for row in rows)
    return text.getvalue()


def _as_typed(name: str) -> str:
    """A name in Markdown that is shown as it was typed, inside a table."""
    return re.sub(r"([\\`*_{}\[\]<>|~$])", r"\\\1", name)


def read_run(label: str, path: Path) -> RunMetrics:
    """The metrics of the run in folder `path`."""
    train: dict[int, Row] = {}
    evaluations: dict[tuple[int, int], Row] = {}
    for row in read_metrics(path / "metrics.jsonl"):
        if row["kind"] == "train":
            train[row["step"]] = row
        elif row["kind"] == "eval":
            evaluations[row["step"], row.get("passes", 0)] = row
    if not train and not evaluations:
        raise UserError(f"{path / 'metrics.jsonl'}: nothing was logged yet; train the run first")
    most = max((passes for _, passes in evaluations), default=0)
    at_most = [evaluations[key] for key in sorted(evaluations) if key[1] == most]
    fewer = {n: evaluations[step, n] for step, n in sorted(evaluations) if n < most}
    ends = {n: row for n, row in fewer.items() if row["step"] == at_most[-1]["step"]}
    return RunMetrics(label, [train[step] for step in sorted(train)], at_most, ends)


def read_metrics(path: Path) -> Iterator[Row]:
    """The rows of a metrics.jsonl. UserError: it cannot be read, or a line is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{path}: cannot read the run's metrics: {error.strerror}; is this a run's folder?"
        ) from None
    lines = text.split("\n")
    # what follows the last newline is still being written
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = parse_json(line)
            row["kind"], row["step"]
            if "loss" in row and row["loss"] is None:
                row["loss"] = np.nan  # JSON has none: it was written as null
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{path}:{number}: not a line of metrics; remove it") from None
        yield row


def _labels(paths: Sequence[Path]) -> list[str]:
    """Names of the runs' folders; whole paths where names are the same."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def plot_loss(runs: list[RunMetrics], out: Path) -> None:
    """Training loss by step, smoothed over a faint raw line, and held-out loss as points."""
    with figure(out, _legend(runs), panels=1, width=6.6) as (axis,):
        for run in runs:
            steps, losses = [r["step"] for r in run.train], [r["loss"] for r in run.train]
            axis.plot(steps, losses, color=run.colour, alpha=0.25, linewidth=0.8)
            axis.plot(steps, smooth(losses, max(1, len(losses) // 40)), color=run.colour)
            held = [(r["step"], r["loss"]) for r in run.evaluations]
            if held:
                axis.plot(
                    *zip(*held, strict=True),
                    "o",
                    color=run.colour,
                    markersize=4,
                    markeredgecolor="white",
                )
        axis.set(
            title="Loss: training (lines) and held-out (points)",
            xlabel="step",
            ylabel="nats per scored token",
        )
        axis.set_xlim(left=0)


def plot_loss_by_place(runs: list[RunMetrics], out: Path) -> None:
    """Held-out loss at the last evaluation, by window of the sequence (dashed: of runs with N > 1,
    with one pass; thin: with each number in between) and by place within it.
    """
    with figure(out, _legend(runs), panels=2, width=9.6) as (by_window, by_place):
        for run in runs:
            windows, places = (
                run.evaluations[-1][f"loss_per_{what}"] for what in ("window", "position")
            )
            x, y = _present(windows, first=1)
            by_window.plot(x, y, "o-", color=run.colour, markeredgecolor="white")
            for n, row in run.with_fewer.items():
                x, y = _present(row["loss_per_window"], first=1)
                style, width = ("o--", 1.0) if n == 1 else ("o-", 0.5)
                by_window.plot(x, y, style, color=run.colour, markersize=3, linewidth=width)
            x, y = _present(places, first=1)
            by_place.plot(x, y, color=run.colour, alpha=0.25, linewidth=0.8)
            by_place.plot(x, smooth(y, len(y) // 48), color=run.colour)
        by_window.set(
            title="Held-out loss by window (dashed: one pass, thin: more)",
            xlabel="window of the sequence",
            ylabel="nats per scored token",
        )
        by_window.xaxis.get_major_locator().set_params(integer=True)
        by_place.set(
            title="Held-out loss by place in the window", xlabel="tokens since the window began"
        )


def plot_accuracy(runs: list[RunMetrics], kind: str | None, out: Path) -> None:
    """Accuracy at the end by depth or by name, and on the way at the deepest (or the first)."""
    runs = [run for run in runs if (_by_depth(run.accuracy, kind) if kind else run.accuracy)]
    if kind:
        depths = sorted({k for run in runs for k in _by_depth(run.accuracy, kind)})
        names, shown, hardest = (
            [f"{kind}_{k}" for k in depths],
            [str(k) for k in depths],
            f"{kind}_{depths[-1]}",
        )
        titles = (
            f"Accuracy by {DEPTHS[kind]}",
            f"Accuracy at {DEPTHS[kind].split(' ')[0]} = {depths[-1]}, by step",
        )
    else:
        names = list(runs[0].accuracy)
        shown, hardest = [LABELS.get(name, name) for name in names], names[0]
        titles = "Accuracy", f"{shown[0].capitalize()}, by step"
    with figure(out, _legend(runs), panels=2, width=9.6) as (bars, curves):
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
    headers = [
        "run",
        "N",
        "steps",
        "training loss",
        "held-out loss",
        *(n.replace("_", " ") for n in names),
    ]
    rows = []
    for run in runs:
        steps = max(r["step"] for r in run.train[-1:] + run.evaluations[-1:])
        losses = [_last_loss(rows, steps) for rows in (run.train, run.evaluations)]
        shares = [_percent(run.accuracy.get(name)) for name in names]
        rows.append([run.label, str(run.passes or "-"), f"{steps:,}", *losses, *shares])
    return headers, rows


def _last_loss(rows: list[Row], steps: int) -> str:
    """Of a run that is under way the last is of an earlier step, which is named."""
    if not rows:
        return "-"
    step, loss = rows[-1]["step"], f"{rows[-1]['loss']:.3f}"
    return loss if step == steps else f"{loss} (step {step:,})"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _by_depth(accuracy: dict[str, float], kind: str) -> dict[int, float]:
    """{4: share} of the accuracies called "hops_4"."""
    parts = {name: name.rpartition("_") for name in accuracy}
    return {
        int(n): accuracy[name]
        for name, (head, _, n) in parts.items()
        if head == kind and n.isdigit()
    }


def _present(values: list[float | None], first: int) -> tuple[list[int], list[float]]:
    """Places (counted from `first`) and values of what is not None."""
    kept = [(i, v) for i, v in enumerate(values, start=first) if v is not None]
    return [i for i, _ in kept], [v for _, v in kept]


def _legend(runs: list[RunMetrics]) -> list[tuple[str, str]]:
    return [(run.label, run.colour) for run in runs]


def _coloured(runs: list[RunMetrics]) -> list[RunMetrics]:
    """Gives each of several runs a colour; the first, the baseline by custom, is grey."""
    for i, run in enumerate(runs if len(runs) > 1 else []):
        run.colour = COLOURS[i % len(COLOURS)]
    return runs
