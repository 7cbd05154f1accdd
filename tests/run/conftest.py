"""Two small runs: a task, and text whose documents are longer than a sequence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pretrain.config.schema import (
    Config,
    CorpusConfig,
    DataConfig,
    DepoConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
)
from tests.run import reference

MakeConfig = Callable[..., Config]
SCHEDULE = TrainConfig(
    steps=6, batch=4, log_every=3, eval_every=3, eval_batches=1, checkpoint_every=3, keep=2
)


def text_runs(corpus: Path, folder: Path) -> MakeConfig:
    """Makes text runs in a folder; settings of [train] by name, and `name`, `zero`, `eviction`."""
    shards = corpus / "shards"

    def make(name: str, zero: int = 1, eviction: str = "hard", **changes: object) -> Config:
        return Config(
            run=RunConfig(name=name, dir=str(folder)),
            model=replace(reference.MODEL, vocab_size=0),
            sleep=replace(reference.SLEEP, eviction=eviction),
            data=DataConfig(
                tokenizer=str(corpus / "small.model"),
                train=[CorpusConfig(path=str(shards / "train"))],
                heldout=str(shards / "heldout"),
                windows=2,
            ),
            optimizer=replace(reference.OPTIMIZER),
            parallel=ParallelConfig(zero=zero),
            train=replace(SCHEDULE, **changes),
        )

    return make


@pytest.fixture
def text(corpus: Path, tmp_path: Path) -> MakeConfig:
    """Makes text runs for this test."""
    return text_runs(corpus, tmp_path)


@pytest.fixture
def depo(tmp_path: Path) -> MakeConfig:
    """Makes runs of the retrieval task."""

    def make(name: str, zero: int = 1, **changes: object) -> Config:
        return Config(
            run=RunConfig(name=name, dir=str(tmp_path)),
            model=replace(reference.MODEL, vocab_size=0),
            sleep=replace(reference.SLEEP, when="context"),
            data=DataConfig(task="depo"),
            depo=DepoConfig(
                nodes=4, max_hops=2, context=8, queries=4, vocabulary=12, name_tokens=(1, 1)
            ),
            optimizer=replace(reference.OPTIMIZER),
            parallel=ParallelConfig(zero=zero),
            train=replace(SCHEDULE, **changes),
        )

    return make
