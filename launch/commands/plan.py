"""hypnos plan: memory, time and cost of a run on any number of GPUs, for every layout."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from launch.commands import argument, command
from launch.commands.train import RUN
from launch.commands.values import new_file, positive, tell

if TYPE_CHECKING:
    from pretrain.study.hardware import NodeSpec


def gpus(text: str) -> int:
    """A whole number from 1 to 10,000."""
    from pretrain.study.hardware import MAX_GPUS

    if not text.isdecimal() or not 1 <= int(text) <= MAX_GPUS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {MAX_GPUS}")
    return int(text)


@command(
    "plan",
    "what a run needs on any number of GPUs: memory, time and cost of every layout, best first",
    description="Estimates every valid layout of CONFIG without running it: memory per rank, time "
    "per step, idle time of the pipeline schedule, cost. Settings of [parallel] and "
    "train.microbatches given on the command line are fixed.",
    example="hypnos plan configs/recipes/7B.toml --gpus 64\n"
    "hypnos plan configs/recipes/7B.toml --gpus 512 --hardware b200 parallel.tp=2 --top 3\n"
    "hypnos plan configs/recipes/1B.toml --gpus 8 --build",
    arguments=[
        *RUN,
        argument("--gpus", type=gpus, metavar="COUNT", required=True, help="from 1 to 10,000"),
        argument(
            "--hardware",
            metavar="NAME",
            default="h100",
            help="a100, h100, h200, b200 (configs/hardware/ has the assumed numbers) or a "
            "TOML file",
        ),
        argument(
            "--measure",
            type=new_file,
            metavar="FILE",
            help="measure this machine instead, write FILE for --hardware, and plan with it",
        ),
        argument("--top", type=positive, metavar="COUNT", default=10, help="rows of the table"),
        argument("--csv", type=new_file, metavar="FILE", help="also write all columns there"),
        argument(
            "--build",
            action="store_true",
            help="also build the best layout's stages on the meta device, in a fake world of "
            "ranks, and simulate its schedule",
        ),
    ],
)
def plan(
    config: Path,
    overrides: list[str],
    gpus: int,
    hardware: str,
    measure: Path | None,
    top: int,
    csv: Path | None,
    build: bool,
) -> None:
    from pretrain.config.run_folder import load_run
    from pretrain.files import write_atomically
    from pretrain.run.console import said_if_slow
    from pretrain.study.hardware import NetworkSpec, load_hardware

    settings = load_run(config, overrides)
    fixed = [text.partition("=")[0].strip() for text in overrides]
    with said_if_slow("loading torch", tell):
        from pretrain.convert.engines import early_warning
        from pretrain.study import planner
        from pretrain.study.estimate import with_vocabulary
        from pretrain.study.plan_table import as_csv, show
    settings = with_vocabulary(settings)
    if measure:
        from pretrain.study.measure import measured, written

        tell("measuring this machine ...")
        here = measured()
        write_atomically(measure, written(here).encode())
    else:
        here = load_hardware(hardware)
    if gpus > here.node.devices and not here.node.shared and here.network == NetworkSpec():
        tell("the hardware has no [network]: assuming 1 GB/s from a GPU to other hosts")
    if warning := early_warning(settings):
        tell(f"warning: {warning}")
    with said_if_slow("estimating layouts", tell):
        found = planner.plan(settings, gpus, here, fixed=fixed, top=top)
    show(found, settings, gpus, here)
    best = found.best[0]
    chosen = planner.settings(settings, best.layout)
    if csv:
        write_atomically(csv, as_csv(found, settings).encode())
    if build:
        with said_if_slow("building stages", tell):
            from pretrain.study.fake_world import build_stages

            for line in build_stages(planner.with_layout(settings, best.layout), gpus, here):
                print(line)
    # the chosen layout may override given settings: later ones win
    given = shlex.join([str(config), *overrides, *chosen])
    print(f"next, on {gpus} GPUs: hypnos {_start(gpus, here.node)} {given}")


def _start(gpus: int, node: NodeSpec) -> str:
    """The `hypnos` command that starts so many ranks."""
    if gpus == 1:
        return "train"
    each = node.ranks(gpus)
    if each == gpus:
        return f"launch local --ranks {gpus}"
    return f"launch slurm --nodes {gpus // each} --gpus-per-node {each}"
