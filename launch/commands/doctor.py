"""hypnos doctor: what this machine has and lacks; with RUN, whether its checkpoints are whole."""

from __future__ import annotations

from pathlib import Path

from launch.commands import argument, command
from launch.commands.values import path


@command(
    "doctor",
    "check this machine, or the checkpoints of a run",
    description="Checks what training needs on this machine. "
    "With RUN, verifies that run's checkpoints instead.",
    example="hypnos doctor\nhypnos doctor runs/text-tiny",
    arguments=[
        argument("folder", metavar="RUN", type=path, nargs="?", help="a run's folder"),
    ],
)
def doctor(folder: Path | None) -> int:
    from launch.doctor import examine_machine, examine_run, show

    findings = show(examine_machine() if folder is None else examine_run(folder))
    return 1 if any(finding.state == "fail" for finding in findings) else 0
