"""Runs training steps on some ranks, and plans them; used by `benchmarks.plan`.

    torchrun --nproc-per-node=R -m benchmarks.plan_run FILE [key=value ...]

Steps are those of the trainer (`pretrain/run/step.py`) with DeepSpeed, Muon and AdamW. Ranks share
cores with each other and with other processes, so their CPU time is compared, not their wall time.
The speed of a shared machine also varies, so before each step rank 0 alone times a reference
computation. Rank 0 appends lines of JSON to FILE.
"""

from __future__ import annotations

import gc
import json
import time
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
import torch.nn.functional as F

from benchmarks.command import described
from parallel import mesh
from parallel.engine import Engine
from pretrain.config.checks import validate
from pretrain.config.load import override
from pretrain.config.schema import (
    Config,
    CorpusConfig,
    DataConfig,
    ModelConfig,
    SleepConfig,
    TrainConfig,
)  # fmt: skip
from pretrain.data.batch import Batch
from pretrain.model.sleep import SleepLM
from pretrain.run.guard import mean_loss
from pretrain.run.optimizer import MuonAdamW
from pretrain.run.prepare import lay_grid, make_stage
from pretrain.run.step import accumulate
from pretrain.study.estimate import example
from pretrain.study.hardware import Hardware
from pretrain.study.stage_times import ATTENTION, ELEMENTWISE, PRODUCTS

STEPS = 3
ROWS, HEADS, T, HEAD, WIDTH = 4, 4, 128, 64, 1024  # of the reference computation
D = HEADS * HEAD

# one rank: N, recomputation, width
ALONE = [
    ["sleep.passes=1", "parallel.recompute=none"], ["sleep.passes=1"], ["sleep.passes=4"],
    ["sleep.passes=2", "model.d_model=128", "model.mlp_width=512", "train.batch=16"],
    ["sleep.passes=2", "model.d_model=512", "model.mlp_width=2048", "train.batch=4",
     "train.microbatches=2"],
    ["sleep.passes=2", "sleep.window=64"],
]  # fmt: skip


def base() -> Config:
    """A hybrid of four blocks on text, 8 rows of 4 windows of 128 tokens."""
    return Config(
        model=ModelConfig(d_model=256, mlp_width=1024, vocab_size=512),
        sleep=SleepConfig(passes=2, window=128),
        data=DataConfig(tokenizer="-", train=[CorpusConfig(path="-")], heldout="-"),
        train=TrainConfig(batch=8),
    )


def rows(config: Config, count: int) -> Batch:
    """Random tokens; every row is one document."""
    one = example(config)
    tokens = torch.randint(0, config.model.vocab_size, (count, one.size[1]))
    whole = [t.expand(count, -1).contiguous() for t in (one.valid, one.starts)]
    return Batch(tokens, tokens.roll(-1, 1), *whole, torch.zeros(count, dtype=torch.bool))


def yardstick() -> float:
    """CPU seconds of the reference computation, the median of several: matrix products, attention
    and gates, forward and backward.
    """
    x = torch.ones(ROWS, HEADS, T, HEAD, requires_grad=True)
    up, down = (torch.ones(shape, requires_grad=True) for shape in ((WIDTH, D), (D, WIDTH)))
    took = []
    for _ in range(20):
        begin = time.process_time()
        y = F.scaled_dot_product_attention(x, x, x, is_causal=True)
        y = F.linear(y.transpose(1, 2).flatten(2), up)  # [ROWS, T, WIDTH]
        F.linear(F.silu(y) * y, down).mean().backward()
        took.append(time.process_time() - begin)
    return median(took)


def planned_yardstick(hardware: Hardware) -> float:
    """The same, predicted from a hardware file's rates as `pretrain.study.measure` counts."""
    device, flops, n = hardware.device, hardware.flops("fp32"), ROWS * T
    products = (1 + PRODUCTS) * 2 * n * 2 * D * WIDTH / device.product_share
    attention = (1 + ATTENTION) * 4 * n * D * T / device.attention_share
    moved = (1 + ELEMENTWISE) * 5 * 4 * n * WIDTH
    return (products + attention) / flops + moved / device.bandwidth


def measured(config: Config) -> tuple[float, float]:
    """CPU seconds that this rank takes for a step, and rank 0 for the reference computation; each
    the median of several.
    """
    torch.manual_seed(mesh.dp_rank())
    model = SleepLM(config.model, config.sleep, make_stage(config)).initialize(0)
    optimizer = MuonAdamW(model.named_parameters(), config.optimizer)
    M = config.train.microbatches
    engine = Engine(
        model, optimizer, zero=config.parallel.zero, precision="fp32", microbatches=M,
        tied=model.tied,
    )  # fmt: skip
    whole = rows(config, config.train.batch // mesh.dp_size())
    parts = whole.split(M)
    scored = whole.targets.numel() * mesh.dp_size()
    took, by = [], []
    for _ in range(STEPS + 1):
        dist.barrier()
        by.append(yardstick() if dist.get_rank() == 0 else 0.0)
        dist.barrier()
        begin = time.process_time()
        outputs = accumulate(engine, model, parts, [None] * M, scored, config.parallel)
        optimizer.loss = mean_loss([out.window_loss for out in outputs], scored)
        engine.step()
        took.append(time.process_time() - begin)
    engine.close()
    return median(took[1:]), median(by[1:])


def main(file: Path, overrides: list[str]) -> None:
    """All single-rank cases, or the layout that is given."""
    torch.set_num_threads(1)
    cases, ranks = [overrides], mesh.world_size()
    if ranks == 1:
        cases = [["parallel.recompute=unit", *each] for each in ALONE]
    for case in cases:
        config = override(base(), case)
        validate(config)
        lay_grid(config.parallel)
        both = torch.tensor(measured(config))
        dist.all_reduce(both)
        seconds, by = both.tolist()
        if dist.get_rank() == 0:
            with file.open("a") as out:
                found = {"ranks": ranks, "case": case, "measured": seconds, "yardstick": by}
                out.write(json.dumps(found) + "\n")
            print(f"{ranks} ranks {' '.join(case)}: {seconds:.3f} s", flush=True)
    gc.collect()  # see there
    mesh.shutdown()


if __name__ == "__main__":
    parser = described(__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("overrides", nargs="*", default=[])
    args = parser.parse_args()
    main(args.file, args.overrides)
