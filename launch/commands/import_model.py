"""hypnos import: makes a run from a Hugging Face model."""

from __future__ import annotations

import shlex
from pathlib import Path

from launch.commands import argument, command, overrides
from launch.commands.values import path, positive, tell


@command(
    "import",
    "make a run from a Hugging Face model: a Qwen3.5 hybrid, Llama, Mistral, Qwen2 or Qwen3",
    description="Makes a run at step 0 from a folder of safetensors. A Qwen3.5 dense hybrid is "
    "imported unchanged; into others, delta-rule blocks are inserted, which change nothing until "
    "they are trained. The middle half of the blocks is looped, unless a setting says otherwise.",
    example="hypnos import Qwen3.5-0.8B runs/taught sleep.passes=4 sleep.window=1024\n"
    "hypnos import Qwen3-0.6B runs/taught --delta-every 4 sleep.prelude=0 sleep.coda=0",
    arguments=[
        argument("folder", metavar="FOLDER", type=path, help="config.json and safetensors"),
        argument("out", metavar="RUN", type=path, help="folder of the new run"),
        overrides(
            "settings of the run, such as sleep.passes=4; they may still be changed in training"
        ),
        argument(
            "--delta-every",
            type=positive,
            metavar="K",
            help="insert a delta-rule block for every K attention blocks (default: 4)",
        ),
    ],
)
def import_model(folder: Path, out: Path, overrides: list[str], delta_every: int | None) -> None:
    from pretrain.run.console import said_if_slow

    with said_if_slow("loading torch", tell):
        from pretrain.config.load import load
        from pretrain.config.run_folder import CONFIG
        from pretrain.convert.into_run import import_folder

    with said_if_slow(f"importing {folder}", tell):
        said = import_folder(folder, out, overrides, delta_every)
    for line in said:
        tell(line)
    config = out / CONFIG
    following = f"hypnos train {shlex.quote(str(config))}"
    if load(config).data.task == "text":
        following += " 'data.train=[{path=\"SHARDS/train\"}]' data.heldout=SHARDS/heldout"
    print(f"wrote {out}; next: {following}")
