"""hypnos doctor: what this machine has and lacks; with RUN, whether its checkpoints are whole."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launch.commands import Commands


def register(commands: Commands) -> None:
    parser = commands.add_parser(
        "doctor",
        help="check this machine, or the checkpoints of a run",
        description="Checks what training needs on this machine. With RUN, verifies that run's checkpoints instead.",
        epilog="example:\n  hypnos doctor\n  hypnos doctor runs/text-tiny",
    )
    parser.add_argument("folder", metavar="RUN", type=Path, nargs="?", help="a run's folder")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from launch.doctor import examine_machine, examine_run, show

    findings = examine_machine() if arguments.folder is None else examine_run(arguments.folder)
    show(findings)
    return 1 if any(finding.state == "fail" for finding in findings) else 0
