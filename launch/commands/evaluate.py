"""hypnos eval: how well a run's newest checkpoint predicts, at any number of passes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.commands.values import positive

if TYPE_CHECKING:
    from launch.commands import Commands


def register(commands: Commands) -> None:
    parser = commands.add_parser(
        "eval",
        help="held-out loss and task accuracy of a run, at any number of passes",
        description="Evaluates a run's newest checkpoint on its held-out data.",
        epilog="example:\n  hypnos eval runs/depo-small --passes 1 2 4",
    )
    parser.add_argument("folder", metavar="RUN", type=Path, help="a run's folder")
    parser.add_argument(
        "--passes",
        type=positive,
        nargs="+",
        metavar="N",
        help="passes to evaluate at (default: 1 and the trained N)",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="one JSON object per N, with the loss by window and place",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from pretrain.evaluate import evaluate_run

    results = evaluate_run(arguments.folder, arguments.passes)
    if arguments.json:
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
    for window, losses in enumerate(
        zip(*(metrics["loss_per_window"] for metrics in results), strict=True)
    ):
        if losses[0] is not None:  # nothing is scored there
            table.add_row(f"  window {window}", *(f"{loss:.4f}" for loss in losses))
    for name in results[0].get("accuracy", {}):
        table.add_row(
            f"accuracy {name}", *(f"{100 * metrics['accuracy'][name]:.1f} %" for metrics in results)
        )
    Console().print(table)
