"""A small run on text whose documents continue from one sequence to the next."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from pretrain.config.schema import (
    Config,
    CorpusConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    SleepConfig,
    TrainConfig,
)

STEPS, KEEP = 12, 2
TIMEOUT = 30.0  # seconds; a step takes a tenth of one

MODEL = ModelConfig(
    d_model=16, attention_heads=2, attention_kv_heads=2, attention_head_dim=8, delta_key_heads=2,
    delta_value_heads=4, delta_key_dim=6, delta_value_dim=5, delta_chunk=4, mlp_width=24,
    rotary_fraction=0.5, decay_init=(1e-3, 0.02), embedding_std=1.0, init_std=0.12, head_std=0.2,
    layers=["attention", "delta"],
)  # fmt: skip


class Case(NamedTuple):
    """The number of ranks, and how a step is spread over them."""

    world: int
    parallel: dict[str, Any]
    microbatches: int = 1
    precision: str = "fp32"
    eviction: str = "hard"
    checkpoint_every: int = 2
    passes: int = 2

    def __str__(self) -> str:
        return f"{self.world} ranks " + " ".join(
            f"{name}={value}" for name, value in self.parallel.items()
        )


def make_config(case: Case, corpus: Path, runs: Path, **changes: Any) -> Config:
    """The configuration of the run RUNS/run. changes: settings of [train] by name."""
    schedule = TrainConfig(
        steps=STEPS, batch=4, microbatches=case.microbatches, precision=case.precision,
        log_every=1, eval_every=5,
        eval_batches=1, checkpoint_every=case.checkpoint_every, keep=KEEP,
    )  # fmt: skip
    return Config(
        run=RunConfig(name="run", dir=str(runs)),
        model=MODEL,
        sleep=SleepConfig(passes=case.passes, window=8, eviction=case.eviction),
        data=DataConfig(
            tokenizer=str(corpus / "small.model"),
            train=[CorpusConfig(path=str(corpus / "shards/train"))],
            heldout=str(corpus / "shards/heldout"),
            windows=2,
        ),
        optimizer=OptimizerConfig(
            muon_lr=5e-3, adamw_lr=2e-3, weight_decay=0.1, clip=0.2, warmup=2, decay=4
        ),
        parallel=ParallelConfig(**case.parallel, timeout=TIMEOUT),
        train=replace(schedule, **changes),
    )
