"""hypnos report: runs side by side, as a table, plots and one page of HTML."""

from __future__ import annotations

from pathlib import Path

from launch.commands import argument, command
from launch.commands.values import path, tell


@command(
    "report",
    "compare runs in a table, plots and one page of HTML",
    description="Compares the results of one or more runs: report.html holds all of it.",
    example="hypnos report runs/depo-n1 runs/depo-n4 --out runs/depo-report",
    arguments=[
        argument("runs", metavar="RUN", type=path, nargs="+", help="folders of runs"),
        argument(
            "--out",
            type=path,
            metavar="FOLDER",
            help="where to write (default: the first run's folder)",
        ),
    ],
)
def report(runs: list[Path], out: Path | None) -> None:
    from pretrain.report import report
    from pretrain.run.console import said_if_slow

    with said_if_slow("drawing", tell):
        report(runs, out or runs[0])
