"""hypnos export: writes a run's model as a folder or a file that other software loads."""

from __future__ import annotations

import shlex
from pathlib import Path

from launch.commands import argument, command
from launch.commands.values import path, tell
from pretrain.errors import UserError


@command(
    "export",
    "write a run's model for transformers, llama.cpp and other engines",
    description="Writes a run's newest checkpoint, from any layout of ranks, for other software. "
    "hf: a folder for transformers, vLLM, mlx-lm and mistral.rs. gguf: a file for llama.cpp and "
    "tools built on it.",
    example="hypnos export runs/text-tiny exported --to hf\n"
    "hypnos export runs/text-tiny model.gguf --to gguf --precision fp16",
    arguments=[
        argument(
            "run",
            metavar="RUN",
            type=path,
            help="a run's folder, or one of its checkpoints; for gguf also an exported folder",
        ),
        argument("out", metavar="OUT", type=path, help="new folder (hf) or file (gguf)"),
        argument("--to", choices=["hf", "gguf"], required=True, help="format to write"),
        argument(
            "--precision",
            choices=["fp32", "bf16", "fp16"],
            help="precision of the weights (default: fp32, exactly as trained; for an exported "
            "folder, its own)",
        ),
    ],
)
def export(run: Path, out: Path, to: str, precision: str | None) -> None:
    from pretrain.run.console import said_if_slow

    with said_if_slow("loading torch and transformers", tell):
        from pretrain.convert.export import export
        from pretrain.convert.qwen3_5 import CONFIG

    with said_if_slow(f"exporting {run}", tell):
        if to == "hf":
            step, writes, lines = export(run, out, precision or "fp32")
            for line in lines:
                tell(line)
            named = shlex.quote(str(out))
            following = f"; next: hypnos generate {named} --prompt TEXT" if writes else ""
            wrote = f"{out} (step {step:,}){following}"
        else:
            wrote = _to_gguf(run, out, precision, is_folder=(run / CONFIG).exists())
    print(f"wrote {wrote}")


def _to_gguf(run: Path, out: Path, precision: str | None, is_folder: bool) -> str:
    """Writes a GGUF file; returns what it wrote."""
    try:
        from pretrain.convert import gguf
    except ModuleNotFoundError as error:
        if error.name != "gguf":
            raise
        fix = "it is missing; run `pip install -e '.[gguf]'` in the clone"
        raise UserError(f"--to gguf needs the package gguf: {fix}") from None
    if not is_folder:
        return f"{out} (step {gguf.write_run(run, out, precision or 'fp32'):,})"
    if precision is not None:
        fix = "leave it out, or export the run"
        raise UserError(f"--precision: {run} is an export, which is converted as it is; {fix}")
    gguf.write(run, out)
    return str(out)
