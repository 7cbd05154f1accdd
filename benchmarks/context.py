"""Peak memory of a training step over windows of 32k tokens, by number of ranks that split them.

A step is forward and backward of one row of two windows, of which the first is slept over, without
the optimiser; gradients are allocated before. Resident memory equals what is held, because glibc is
made to return freed tensors at once, as in `benchmarks.memory`.

    python -m benchmarks.context               # five layouts, about ten minutes on two cores
    python -m benchmarks.context --window 4096 # seconds
"""

from __future__ import annotations

import argparse
import json
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.command import described
from benchmarks.ranks import on_ranks
from pretrain.origin import commit, processor

MIB = 2**20
LAYOUTS: dict[str, dict[str, Any]] = {
    "one rank": {},
    "cp = 2": {"cp": 2},
    "cp = 4": {"cp": 4},
    "tp = 2, sequence parallel": {"tp": 2, "sequence_parallel": True},
    "tp = 4, sequence parallel": {"tp": 4, "sequence_parallel": True},
}
PASSES, WIDTH, LAYERS = 2, 64, ("attention", "delta")


def measure(layout: dict[str, Any], window: int, recompute: str, file: Path) -> None:
    """Runs on every rank; writes each rank's peak bytes to FILE."""
    import torch
    import torch.distributed as dist

    from benchmarks.rows import random_rows
    from benchmarks.stage import peak
    from parallel import mesh
    from pretrain.config.schema import ModelConfig, SleepConfig
    from pretrain.data.batch import IGNORE
    from pretrain.model.sleep import SleepLM

    torch.set_num_threads(1)
    mesh.initialize(**layout)
    config = ModelConfig(
        d_model=WIDTH, layers=list(LAYERS), vocab_size=256, mlp_width=4 * WIDTH,
        attention_heads=4, attention_kv_heads=4, attention_head_dim=16,
        delta_key_heads=4, delta_value_heads=4, delta_key_dim=16, delta_value_dim=16,
    )  # fmt: skip
    model = SleepLM(config, SleepConfig(window=window, when="context", passes=PASSES)).initialize(0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def step(window: int) -> None:
        row = random_rows(1, 2, window, config.vocab_size)
        row.targets[:, :window] = IGNORE
        model(row, recompute=recompute).loss.backward()

    model.sleep.window = 64
    step(64)  # initialises libraries and connections
    model.sleep.window = window
    mine = peak(lambda: step(window))
    everyone = [mine] * mesh.world_size()
    dist.all_gather_object(everyone, mine)
    if dist.get_rank() == 0:
        file.write_text(json.dumps(everyone))
    mesh.shutdown()


def launch(layout: dict[str, Any], window: int, recompute: str) -> list[int]:
    """`measure` on as many ranks as a layout has."""
    ranks = layout.get("cp", 1) * layout.get("tp", 1)
    work = ["--window", str(window), "--recompute", recompute, "--as-rank", json.dumps(layout)]
    peaks: list[int] = on_ranks(ranks, "benchmarks.context", *work, returns_freed=True)
    return peaks


def main() -> None:
    """Prints the table."""
    parser = described(__doc__)
    parser.add_argument("--window", type=int, default=32_768, help="tokens (default 32768)")
    parser.add_argument("--recompute", default="unit", choices=("none", "unit", "block"))
    parser.add_argument("--as-rank", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.as_rank:
        layout, file = given.as_rank
        measure(json.loads(layout), given.window, given.recompute, Path(file))
        return
    print(
        f"Windows of {given.window:,} tokens, N = {PASSES}, D = {WIDTH}, {', '.join(LAYERS)}, "
        f'fp32, recompute = "{given.recompute}"; {processor()}, {date.today()}, '
        f"commit {commit() or 'unknown'}.\n"
    )
    print("| layout | peak MiB of each rank | highest, relative to one rank |\n|---|---|---|")
    alone = 0
    for name, layout in LAYOUTS.items():
        peaks = launch(layout, given.window, given.recompute)
        alone = alone or max(peaks)
        shown = " / ".join(f"{held / MIB:.0f}" for held in peaks)
        print(f"| {name} | {shown} | {max(peaks) / alone:.2f} |", flush=True)


if __name__ == "__main__":
    main()
