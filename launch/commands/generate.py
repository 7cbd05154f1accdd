"""hypnos generate: text from a run, by a session that sleeps whenever its window is full."""

from __future__ import annotations

from pathlib import Path

from launch.commands import argument, command
from launch.commands.values import path, positive, read_text, seed, tell, temperature
from pretrain.errors import UserError


@command(
    "generate",
    "continue a prompt with a trained model that sleeps when its window is full",
    description="Continues a prompt with a run's newest checkpoint, or with an export of it.",
    example='hypnos generate runs/text-tiny --prompt "def main(" --tokens 300',
    arguments=[
        argument("folder", metavar="RUN", type=path, help="a run's folder, or an export"),
        argument("--prompt", metavar="TEXT", help="text to go on from"),
        argument(
            "--prompt-file",
            type=path,
            metavar="FILE",
            help="UTF-8 file to go on from; -: standard input",
        ),
        argument(
            "--tokens", type=positive, metavar="COUNT", default=200, help="maximum new tokens"
        ),
        argument(
            "--temperature",
            type=temperature,
            metavar="X",
            default=0.8,
            help="0 takes the likeliest token",
        ),
        argument("--seed", type=seed, default=0, help="seed of the sampling (default: 0)"),
        argument(
            "--passes",
            type=positive,
            metavar="N",
            help="passes over a full window (default: as trained)",
        ),
    ],
)
def generate(
    folder: Path,
    prompt: str | None,
    prompt_file: Path | None,
    tokens: int,
    temperature: float,
    seed: int,
    passes: int | None,
) -> None:
    if (prompt is None) == (prompt_file is None):
        raise UserError("name the text to go on from: either --prompt TEXT or --prompt-file FILE")
    if prompt_file is not None:
        prompt = read_text(None if str(prompt_file) == "-" else prompt_file)
    assert prompt is not None, "one of the two is given"

    from pretrain.run.console import said_if_slow

    with said_if_slow("loading torch, Megatron and DeepSpeed", tell):
        from pretrain.inference.session import generate_run
    pieces = generate_run(
        folder, prompt, max_tokens=tokens, temperature=temperature, seed=seed, passes=passes
    )
    with said_if_slow(f"opening {folder} and reading the prompt", tell):
        first = next(pieces, "")  # an error comes before anything is printed
    print(prompt + first, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
