"""Measures how long training waits for a checkpoint, saved asynchronously and synchronously.

    python -m benchmarks.checkpoint                                         # one process
    torchrun --nproc-per-node=2 -m benchmarks.checkpoint     # two ranks, ZeRO 1

Everything runs as in the trainer: a snapshot is copied, and a thread writes, hashes and flushes it
while training continues.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch.distributed as dist

from benchmarks.command import described
from parallel import mesh, talk
from parallel.engine import Engine
from pretrain.checkpoint import Saver
from pretrain.config.schema import (
    Config,
    DataConfig,
    DepoConfig,
    ModelConfig,
    RunConfig,
    SleepConfig,
    TrainConfig,
)
from pretrain.data.batch import IGNORE
from pretrain.model.sleep import SleepLM
from pretrain.run.optimizer import MuonAdamW
from pretrain.run.prepare import make_source
from pretrain.run.state import TrainState
from pretrain.run.step import accumulate

MIB = 2**20
REPEATS = 5


def seconds(run: Callable[[], object]) -> float:
    """How long it takes when all ranks begin together."""
    dist.barrier()
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def main() -> None:
    """Measures, and prints a table."""
    parser = described(__doc__)
    parser.add_argument("--d-model", type=int, default=768, help="width of the model (%(default)s)")
    args = parser.parse_args()
    mesh.initialize()
    with tempfile.TemporaryDirectory() as folder:
        config = Config(
            run=RunConfig(dir=folder),
            model=ModelConfig(
                d_model=args.d_model, layers=["attention", "delta"] * 2, vocab_size=128
            ),
            sleep=SleepConfig(passes=2, window=32, when="context"),
            data=DataConfig(task="depo"),
            depo=DepoConfig(nodes=8, context=32, queries=4),
            train=TrainConfig(batch=4 * mesh.dp_size(), keep=1),
        )
        measure(config, talk.from_rank_0(Path(folder) / "run"))
    mesh.shutdown()


def measure(config: Config, run: Path) -> None:
    """Trains a few steps in each of three ways."""
    source = make_source(config)
    model = SleepLM(config.model, config.sleep).initialize(0)
    optimizer = MuonAdamW(model.named_parameters(), config.optimizer)
    engine = Engine(model, optimizer, zero=1, precision="fp32")
    saver, done = Saver(run, config, None), 0

    def train() -> None:
        nonlocal done
        batch = source.next()
        scored = (batch.targets != IGNORE).sum()
        dist.all_reduce(scored)
        accumulate(engine, model, [batch], [None], scored, config.parallel)
        engine.step()
        done += 1

    def save() -> None:
        state = replace(TrainState.initial(source, microbatches=1), step=done)
        saver.save(done, lambda: state.snapshot(engine, optimizer, model))

    def save_and_wait() -> None:
        save()
        saver.wait()

    train()
    save_and_wait()  # for one-time allocations
    times: dict[str, list[float]] = {
        what: [] for what in ("plain", "waiting", "pause", "beside", "writing")
    }
    for _ in range(REPEATS):
        times["plain"].append(seconds(train))
        train()
        times["waiting"].append(seconds(save_and_wait))
        train()
        begin = time.perf_counter()
        times["pause"].append(seconds(save))
        times["beside"].append(seconds(train))
        saver.wait()
        times["writing"].append(time.perf_counter() - begin)
    if dist.get_rank() == 0:
        files = (run / "checkpoints").rglob("*.safetensors")
        size = sum(path.stat().st_size for path in files) / MIB
        step, count = median(times["plain"]), sum(p.numel() for p in model.parameters()) / 1e6
        print(
            f"{mesh.world_size()} ranks, {count:.1f} M parameters, {size:.0f} MiB on disk; "
            f"a step takes {step:.3f} s"
        )
        print("| | seconds | steps |\n|---|---|---|")
        for what, key in (
            ("if training waited for the disk", "waiting"),
            ("saved in the background: the pause", "pause"),
            ("the step during which it is written", "beside"), ("until it is on disk", "writing"),
        ):  # fmt: skip
            print(f"| {what} | {median(times[key]):.3f} | {median(times[key]) / step:.2f} |")
    engine.close()
    source.close()


if __name__ == "__main__":
    main()
