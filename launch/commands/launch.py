"""hypnos launch: `hypnos train` on many ranks, here or on a cluster."""

from __future__ import annotations

import sys
from pathlib import Path

from launch.commands import Group, argument, command
from launch.commands.train import RUN
from launch.commands.values import positive


@command(
    "local",
    "train on several ranks of this machine",
    description="Starts `hypnos train` as ranks of this machine. Rank 0 is shown; each rank's log "
    "is in the run's folder.",
    example="hypnos launch local configs/depo-small.toml --ranks 4 parallel.tp=2 parallel.pp=2 "
    "train.microbatches=2",
    arguments=[
        *RUN,
        argument("--ranks", type=positive, metavar="COUNT", required=True, help="ranks to start"),
    ],
)
def local(config: Path, overrides: list[str], ranks: int) -> int:
    from pretrain.config.load import load

    settings = load(config, overrides)  # a mistake is told once, before anything is started
    logs = Path(settings.run.dir) / settings.run.name / "logs"

    from launch.local import run_ranks

    return run_ranks(
        [sys.executable, "-m", "launch", "train", str(config), *overrides], ranks=ranks, logs=logs
    )


LAUNCH = Group(
    "launch",
    "train on many ranks: of this machine",
    description="Starts `hypnos train` on many ranks, and ends them together.",
    example="hypnos launch local configs/depo-small.toml --ranks 2 parallel.pp=2 "
    "train.microbatches=2",
    commands=(local,),
)
