"""hypnos train: one run, from its configuration."""

from __future__ import annotations

import argparse
import os
import re
import sys
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launch.commands import Commands


def register(commands: Commands) -> None:
    parser = commands.add_parser(
        "train",
        help="train a model, or go on where a run stopped",
        description="Trains what CONFIG describes. A run that was interrupted goes on from its newest checkpoint.",
        epilog="example:\n  hypnos train configs/depo-small.toml run.name=depo-n1 sleep.passes=1\n"
        "on four ranks:\n  torchrun --nproc-per-node=4 -m launch train configs/depo-small.toml "
        "parallel.tp=2 parallel.pp=2 train.microbatches=2\n"
        "settings:\n  every one, its default and its meaning: pretrain/config/schema.py",
    )
    parser.add_argument("config", metavar="CONFIG", help="TOML file; configs/ has some")
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        default=[],
        help="settings that differ, as sleep.passes=4",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from pretrain.config.load import load
    from pretrain.errors import UserError

    try:
        # before the slow imports: a typo is told at once
        config = load(arguments.config, arguments.overrides)
    except UserError:
        if os.environ.get("LOCAL_RANK", "0") != "0":  # once a host is enough
            sys.exit(2)
        raise

    from parallel import mesh, watchdog
    from pretrain.config.memory import out_of_memory
    from pretrain.trainer import train

    try:
        train(config)
    except UserError:
        raise
    except Exception as error:
        if mesh.world_size() == 1:
            if out_of_memory(error):
                raise UserError(
                    f"{arguments.config}: out of memory; raise train.microbatches, or lower train.batch or sleep.window"
                ) from None
            raise
        if mesh.is_of_another_rank(error):
            # gloo names its source
            reason = re.sub(r"^\[\S+\] ", "", str(error).splitlines()[0]).split(". ")[0]
            print(
                f"hypnos: error: {watchdog.activity()}: another rank has gone ({reason}); see there",
                file=sys.stderr,
            )
        else:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # an orderly end would wait for ranks that are gone
    mesh.shutdown()
