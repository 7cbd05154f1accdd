"""hypnos train: one run, from its configuration."""

from __future__ import annotations

import argparse
import gc
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path

from launch.commands import argument, command, overrides
from launch.commands.values import path, tell


class ShowSettings(argparse.Action):
    """Prints the page of all settings, and ends."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        nothing = argparse.SUPPRESS  # not passed to the command
        super().__init__(option_strings, nothing, nargs=0, default=nothing, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from pretrain.config.reference import text

        print(text(), flush=True)
        parser.exit()


# Arguments that identify a run: shared by all commands that train.
RUN = (
    argument("config", metavar="CONFIG", type=path, help="TOML file; see configs/"),
    overrides("settings that differ, such as sleep.passes=4"),
)


@command(
    "train",
    "train a model, or resume a run",
    description="Trains what CONFIG describes. An interrupted run resumes from its newest "
    "checkpoint.",
    example="hypnos train configs/depo-small.toml run.name=depo-n1 sleep.passes=1\n"
    "torchrun --nproc-per-node=4 --no-python hypnos train configs/depo-small.toml "
    "parallel.tp=2 parallel.pp=2 train.microbatches=2",
    arguments=[
        *RUN,
        argument(
            "--no-preflight",
            action="store_true",
            help="skip comparing and measuring the ranks before the model is built",
        ),
        argument(
            "--help-settings",
            action=ShowSettings,
            help="print every setting: meaning, values, default, whether it may change on resume",
        ),
    ],
)
def train(config: Path, overrides: list[str], no_preflight: bool) -> None:
    from pretrain.exit_status import after_signal
    from pretrain.run.signals import hearing

    trained = threading.Event()

    def end(number: signal.Signals) -> None:
        """Called in the signal thread: ends the process, wherever it is."""
        if not trained.is_set():  # otherwise it is finished, and ends by itself
            tell(f"stopped by {number.name} before the first step; there is nothing to save")
            os._exit(after_signal(number))

    # until there is anything to save (pretrain/run/stop.py)
    with hearing([signal.SIGUSR1], end, wait=1.0):
        _train(config, overrides, no_preflight, trained)


def _train(
    config: Path, overrides: list[str], no_preflight: bool, trained: threading.Event
) -> None:
    from launch import world
    from pretrain.config.run_folder import check_data, load_run
    from pretrain.errors import UserError
    from pretrain.exit_status import PEER_GONE, USER_ERROR
    from pretrain.run.console import said_if_slow

    mine = world.join()
    try:
        # before the slow imports, so that a typo is reported at once
        settings = load_run(config, overrides)
        check_data(settings, training=True)
    except UserError:
        if os.environ.get("LOCAL_RANK", "0") != "0":  # one message per host is enough
            sys.exit(USER_ERROR)
        raise

    with said_if_slow("loading torch, Megatron and DeepSpeed", _say):
        from launch.preflight import check
        from parallel import mesh, talk, watchdog
        from pretrain.config.memory import make_room, out_of_memory
        from pretrain.trainer import train

    try:
        if not no_preflight and (survey := check(settings, mine, tell)):
            for line in survey.lines():
                tell(line)
        train(settings)
        trained.set()
    except UserError:
        raise
    except Exception as error:
        ranks, no_room = mesh.world_size(), ""
        if out_of_memory(error):
            no_room = f"{config}: out of memory; {make_room(config, settings, ranks)}"
        if ranks == 1:
            if no_room:
                raise UserError(no_room) from None
            raise
        status = 1
        if no_room:  # not a user's error: it may be a single step, and another start may succeed
            print(f"hypnos: error: {watchdog.activity()}: {no_room}", file=sys.stderr)
        elif talk.is_of_another_rank(error):
            status = PEER_GONE
            # gloo names its source
            reason = re.sub(r"^\[\S+\] ", "", str(error).splitlines()[0]).split(". ")[0]
            gone = f"another rank is gone ({reason}); see its log"
            print(f"hypnos: error: {watchdog.activity()}: {gone}", file=sys.stderr)
        else:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(status)  # an orderly exit would wait for ranks that are gone
    gc.collect()  # engines must go before their groups, see `mesh.shutdown`
    mesh.shutdown()


def _say(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr, flush=True)
