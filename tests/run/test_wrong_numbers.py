"""Bad losses and gradients on one of two real ranks: both skip the step, both roll back, and the
result equals one process's.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pretrain.config.schema import Config, GuardConfig
from pretrain.run import guard
from pretrain.trainer import train
from tests.ranks import run_ranks
from tests.run.conftest import MakeConfig
from tests.run.planted import planted
from tests.run.wrong_numbers import TROUBLE, compare, steps
from tests.runs import assert_same_run, rows


def test_both_ranks_decide_alike(
    text: MakeConfig, depo: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "WARMUP_STEPS", 1)
    engine = steps(0, "fp32", False, wrong=False)._asdict()
    monkeypatch.undo()

    def make(name: str, task: str, zero: int = 1, pp: int = 1) -> Config:
        config = (text if task == "text" else depo)(name, zero, checkpoint_every=2)
        config.parallel.pp = pp
        return replace(config, guard=GuardConfig(limit=2, then="rollback"))

    expected = {}
    for task, where in (("text", "embedded"), ("depo", "losses")):
        with planted(TROUBLE, where):
            expected[task] = train(make(task, task), progress=False)
        assert [row["step"] for row in rows(expected[task], "skipped")] == [2, 5, 6]
        assert [row["step"] for row in rows(expected[task], "rollback")] == [4]
    configs = [
        make("text-zero-3", "text", zero=3), make("depo-zero-2", "depo", zero=2),
        make("text-pp", "text", pp=2),
    ]  # fmt: skip
    run_ranks(2, compare, engine, configs)
    for config in configs:
        mine, theirs = tmp_path / config.run.name, expected[config.data.task]
        for kind in ("skipped", "rollback"):  # with the samples of both ranks
            assert rows(mine, kind) == rows(theirs, kind)
        assert_same_run(mine, theirs, 1e-5)
