"""hypnos eval: how well a run's newest checkpoint predicts, at any number of passes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from launch.commands import argument, command
from launch.commands.values import path, positive, tell


@command(
    "eval",
    "held-out loss and task accuracy of a run, at any number of passes",
    description="Evaluates a run's newest checkpoint on its held-out data.",
    example="hypnos eval runs/depo-small --passes 1 2 4\n"
    "hypnos eval runs/text-tiny data.heldout=other/shards train.eval_batches=8",
    arguments=[
        argument("folder", metavar="RUN", type=path, help="a run's folder, or an export"),
        argument(
            "overrides",
            metavar="key=value",
            nargs="*",
            default=[],
            help="settings that differ from the run's, as data.heldout=FOLDER",
        ),
        argument(
            "--passes",
            type=positive,
            nargs="+",
            metavar="N",
            help="passes to evaluate at (default: 1 and the trained N)",
        ),
        argument(
            "--json",
            dest="as_json",
            action="store_true",
            help="one JSON object per N, with the loss by window and place",
        ),
    ],
)
def evaluate(folder: Path, overrides: list[str], passes: list[int] | None, as_json: bool) -> None:
    from pretrain.run.console import said_if_slow

    with said_if_slow("loading torch, Megatron and DeepSpeed", tell):
        from pretrain.evaluate import evaluate_run
    with said_if_slow(f"evaluating {folder}", tell):
        results = evaluate_run(folder, passes, overrides)
    if as_json:
        for metrics in results:
            print(json.dumps(metrics))
    else:
        show(results)


def show(results: list[dict[str, Any]]) -> None:
    """One column per N: the loss, that of each window, and each accuracy."""
    from rich.console import Console
    from rich.table import Table

    table = Table("nats per token")
    for metrics in results:
        table.add_column(f"N = {metrics['passes']}", justify="right")
    table.add_row("loss", *(f"{metrics['loss']:.4f}" for metrics in results))
    by_window = zip(*(metrics["loss_per_window"] for metrics in results), strict=True)
    for window, losses in enumerate(by_window):
        if losses[0] is not None:  # nothing is scored there
            table.add_row(f"  window {window}", *(f"{loss:.4f}" for loss in losses))
    for name in results[0].get("accuracy", {}):
        shares = (f"{100 * metrics['accuracy'][name]:.1f} %" for metrics in results)
        table.add_row(f"accuracy {name}", *shares)
    Console().print(table)
