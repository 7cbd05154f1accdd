"""hypnos export: a run's model as a folder or a file that other software loads."""

from __future__ import annotations

from pathlib import Path

from launch.commands import argument, command
from launch.commands.values import path, tell


@command(
    "export",
    "write a run's model for transformers, llama.cpp and other engines",
    description="Writes a run's newest checkpoint for other software, whatever layout of ranks it "
    "is of. hf: a folder for transformers, vLLM, mlx-lm and mistral.rs.",
    example="hypnos export runs/text-tiny exported --to hf",
    arguments=[
        argument("run", metavar="RUN", type=path, help="a run's folder, or one of its checkpoints"),
        argument("out", metavar="OUT", type=path, help="new folder to write"),
        argument("--to", choices=["hf"], required=True, help="hf: a Hugging Face folder"),
        argument(
            "--precision",
            choices=["fp32", "bf16", "fp16"],
            default="fp32",
            help="of all weights; fp32 gives exactly what was trained",
        ),
    ],
)
def export(run: Path, out: Path, to: str, precision: str) -> None:
    from pretrain.convert.export import export
    from pretrain.run.console import said_if_slow

    with said_if_slow(f"exporting {run}", tell):
        said = export(run, out, precision)
    for line in said:
        tell(line)
    print(f"wrote {out}; next: hypnos generate {out} --prompt TEXT")
