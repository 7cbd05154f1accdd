"""hypnos report: compares runs in a table, plots and an HTML page."""

from __future__ import annotations

from pathlib import Path

from launch.commands import argument, command
from launch.commands.values import path, tell
from pretrain.errors import UserError


@command(
    "report",
    "compare runs in a table, plots and an HTML page; or studies in one table",
    description="Compares one or more runs; everything is in report.html. For folders that `hypnos "
    "reproduce` wrote: tasks x N x controls, in overview.md and overview.html; folders of the same "
    "name are parts of one study.",
    example="hypnos report runs/depo-n1 runs/depo-n4 --out runs/depo-report\n"
    "hypnos report docs/results/depo docs/results/rule110 --out docs/results",
    arguments=[
        argument(
            "runs", metavar="RUN", type=path, nargs="+", help="folders of runs, or of studies"
        ),
        argument(
            "--out",
            type=path,
            metavar="FOLDER",
            help="where to write (default: the run's folder; for several, that of the first)",
        ),
    ],
)
def report(runs: list[Path], out: Path | None) -> None:
    from pretrain.report import report
    from pretrain.run.console import said_if_slow
    from pretrain.study.overview import is_study, overview

    out = out or (runs[0] if len(runs) == 1 else runs[0].parent)
    with said_if_slow("drawing", tell):
        if any(map(is_study, runs)):
            print(overview(runs, out))
        else:
            report(_begun(runs), out)


def _begun(runs: list[Path]) -> list[Path]:
    """Of several runs, those that have logged something: `runs/*` may match other folders."""
    begun = [run for run in runs if (run / "metrics.jsonl").exists()]
    for run in runs if begun else []:
        if not run.exists():
            raise UserError(f"{run}: does not exist; `hypnos train` prints where it writes its run")
        if run not in begun:
            tell(f"{run}: left out: nothing was logged there")
    return begun or runs
