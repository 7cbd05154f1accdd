"""hypnos report: runs side by side, as a table and a plot."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launch.commands import Commands


def register(commands: Commands) -> None:
    parser = commands.add_parser(
        "report",
        help="compare runs in a table and a plot",
        description="Compares the results of one or more runs.",
        epilog="example:\n  hypnos report runs/depo-n1 runs/depo-n4 --out runs/depo-report",
    )
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="folders of runs")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where to write (default: the first run's folder)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from pretrain.report import report

    report(arguments.runs, arguments.out or arguments.runs[0])
