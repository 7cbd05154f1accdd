"""hypnos eval: held-out loss and accuracy of a run's newest checkpoint, at any number of passes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.commands import argument, command, overrides
from launch.commands.asking import FOLDER, PRECISION
from launch.commands.values import positive, share, tell

if TYPE_CHECKING:
    from rich.table import Table

MAX_COLUMNS = 4  # of 80 characters: "N <= 8, until 0.05" takes two lines


@command(
    "eval",
    "held-out loss and task accuracy of a run, at any number of passes",
    description="Evaluates a run's newest checkpoint on its held-out data.",
    example="hypnos eval runs/depo-small --passes 1 2 4\n"
    "hypnos eval runs/depo-small --passes 4 8 --sleep-until 0.3 0.1 0.03\n"
    "hypnos eval runs/text-tiny data.heldout=other/shards data.windows=16 train.eval_batches=8",
    arguments=[
        FOLDER,
        overrides("settings that differ from the run's, as data.heldout=FOLDER"),
        argument(
            "--passes",
            type=positive,
            nargs="+",
            metavar="N",
            help="passes to evaluate at (default: 1 and the trained N)",
        ),
        argument(
            "--sleep-until",
            dest="until",
            type=share,
            nargs="+",
            metavar="SHARE",
            default=[],
            help="also evaluate with at most the largest N, ending a sleep once a pass changes the "
            "fast weights by less than this share of their norm, for example 0.1",
        ),
        argument(
            "--after",
            type=positive,
            nargs="+",
            metavar="COUNT",
            default=[],
            help="also evaluate with the largest N when each row of a task starts with the fast "
            "weights that COUNT other rows leave, read one after the other",
        ),
        PRECISION,
        argument(
            "--json",
            dest="as_json",
            action="store_true",
            help="print one JSON object per N, with the loss by window, by position and by row",
        ),
    ],
)
def evaluate(
    folder: Path,
    overrides: list[str],
    passes: list[int] | None,
    until: list[float],
    after: list[int],
    precision: str,
    as_json: bool,
) -> None:
    from pretrain.files import finite
    from pretrain.run.console import said_if_slow

    with said_if_slow("loading torch, Megatron and DeepSpeed", tell):
        from pretrain.evaluate import evaluate_run
    with said_if_slow(f"evaluating {folder}", tell):
        results = evaluate_run(folder, passes, overrides, until, after, precision, tell)
    if as_json:
        for metrics in results:
            print(json.dumps(finite(metrics)))
    else:
        show(results)


def show(results: list[dict[str, Any]]) -> None:
    """Prints one column per N or stop rule, in tables of a readable width."""
    from rich.console import Console

    asks_until = any("until" in metrics for metrics in results)
    for first in range(0, len(results), MAX_COLUMNS):
        Console().print(_table(results[first : first + MAX_COLUMNS], asks_until))


def _table(results: list[dict[str, Any]], asks_until: bool) -> Table:
    """A table of the loss, the loss of each window, each accuracy, and optionally passes made."""
    from rich.table import Table

    table = Table("nats per token")
    for metrics in results:
        table.add_column(_how(metrics), justify="right")
    table.add_row("loss", *(f"{metrics['loss']:.4f}" for metrics in results))
    by_window = zip(*(metrics["loss_per_window"] for metrics in results), strict=True)
    for window, losses in enumerate(by_window, start=1):
        if losses[0] is not None:  # nothing is scored there
            table.add_row(f"  window {window}", *(f"{loss:.4f}" for loss in losses))
    if "bits_per_byte" in results[0]:
        table.add_row("bits per byte", *(f"{metrics['bits_per_byte']:.4f}" for metrics in results))
    for name in results[0].get("sets", {}):
        of_set = [metrics["sets"][name] for metrics in results]
        table.add_row(f"{name}: loss", *(f"{each['loss']:.4f}" for each in of_set))
        bits = (f"{each['bits_per_byte']:.4f}" for each in of_set)
        table.add_row(f"{name}: bits per byte", *bits)
    for name in results[0].get("accuracy", {}):
        shares = (f"{100 * metrics['accuracy'][name]:.1f} %" for metrics in results)
        table.add_row(f"accuracy {name}", *shares)
    if asks_until:
        for name in ("passes_made", "passes_of_batches"):
            means = (f"{metrics.get(name, metrics['passes']):.2f}" for metrics in results)
            table.add_row(name.replace("_", " "), *means)
    return table


def _how(metrics: dict[str, Any]) -> str:
    """ "N = 4", "N <= 8, until 0.1" or "N = 4, after 3"."""
    if "until" in metrics:
        return f"N <= {metrics['passes']}, until {metrics['until']:g}"
    after = f", after {metrics['after']}" if "after" in metrics else ""
    return f"N = {metrics['passes']}{after}"
