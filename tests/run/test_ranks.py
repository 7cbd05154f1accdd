"""Several processes compared with one: the engine at every ZeRO stage, and whole runs, moved from
layout to layout.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pretrain.config.schema import Config
from pretrain.trainer import train
from tests.ranks import run_ranks
from tests.run import reference, two_ranks
from tests.run.conftest import MakeConfig
from tests.runs import assert_same_run, interrupted, rows, tensors, train_all


def test_the_engine_of_two_ranks_equals_one_process() -> None:
    run_ranks(2, two_ranks.compare, reference.train(4)._asdict())


def test_near_ties_on_ranks_that_share_the_vocabulary() -> None:
    run_ranks(2, two_ranks.check_near_ties)


def test_runs_of_two_ranks_equal_one_process(
    text: MakeConfig, depo: MakeConfig, tmp_path: Path
) -> None:
    expected = {
        "text": train(text("text"), progress=False),
        "depo": train(depo("depo"), progress=False),
    }
    interrupted(text("text-one-two", zero=1))
    interrupted(depo("depo-one-two", zero=3))
    plans = [
        (text("text-one-two", zero=1), 6), (text("text-two-one", zero=1), 3),
        (depo("depo-one-two", zero=3), 6), (depo("depo-two-one", zero=2), 3),
    ]  # fmt: skip
    for config, steps in plans:
        config.train.steps = steps
    run_ranks(2, train_all, [config for config, _ in plans])

    train(text("text-two-one", zero=0), progress=False)
    train(depo("depo-two-one", zero=3), progress=False)
    for config, _ in plans:
        assert_same_report(tmp_path / config.run.name, expected[config.data.task])


def test_ranks_that_share_tokens_measure_what_one_does(depo: MakeConfig, tmp_path: Path) -> None:
    one, two = depo("one"), depo("two")
    for config in (one, two):
        config.model = replace(WIDER)
    two.parallel = replace(two.parallel, cp=2)
    run = train(one, progress=False)
    run_ranks(2, train_all, [two])
    assert_same_report(tmp_path / "two", run)
    for mine, theirs in zip(rows(tmp_path / "two"), rows(run), strict=True):
        if mine["kind"] == "train":
            for key in ("update_norm_per_pass", "grad_norm_per_pass", "state_norm", "retention"):
                assert mine[key] == pytest.approx(theirs[key], rel=1e-5)
            for got, expected in zip(
                mine["retention_per_head"], theirs["retention_per_head"], strict=True
            ):
                assert got == pytest.approx(expected, rel=1e-5)


def assert_same_report(run: Path, whole: Path) -> None:
    """The same run, also in what its ranks have reduced together."""
    assert_same_run(run, whole, 1e-5)
    for mine, theirs in zip(rows(run), rows(whole), strict=True):
        for key in ("kind", "step", "tokens", "passes"):
            assert mine.get(key) == theirs.get(key)
        if mine["kind"] != "warning":
            assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        if mine["kind"] == "eval" and "accuracy" in theirs:
            assert mine["accuracy"] == pytest.approx(theirs["accuracy"])


# Four blocks, and heads that two tensor-parallel ranks can share.
WIDER = replace(
    reference.MODEL, layers=["attention", "delta"] * 2, attention_heads=4, attention_kv_heads=2,
    delta_key_heads=2,
    delta_value_heads=4, tie_embeddings=True, vocab_size=0, embedding_std=1.0,
)  # fmt: skip
LAYOUTS = [
    {"tp": 2, "pp": 2, "recompute": "unit"},
    {"tp": 2, "zero": 3, "sequence_parallel": True},  # x dp = 2
    {"pp": 4},
    {"cp": 2, "zero": 2},  # x dp = 2
]


def test_runs_move_between_layouts(text: MakeConfig, depo: MakeConfig, tmp_path: Path) -> None:
    """One process, then four in some layout, or the other way round: the same run, carried
    documents included.
    """

    def make(name: str, layout: dict[str, Any], task: str) -> Config:
        config = depo(name) if task == "depo" else text(name, eviction="sliding")
        config.model, config.sleep = replace(WIDER), replace(config.sleep, coda=1)
        config.parallel, config.train.microbatches = (
            replace(config.parallel, **layout),
            2 if layout else 1,
        )
        return config

    expected = {task: train(make(task, {}, task), progress=False) for task in ("text", "depo")}
    assert any(name.startswith("state/lanes.") for name in tensors(expected["text"], 3)), (
        "some document must go on"
    )
    moves = []
    for number, layout in enumerate(LAYOUTS):
        task = ("text", "depo")[number == 2]
        interrupted(make(f"from-one-{number}", {}, task))
        whole_way, half_way = (
            make(f"from-one-{number}", layout, task),
            make(f"to-one-{number}", layout, task),
        )
        half_way.train.steps = 3
        moves += [(whole_way, task), (half_way, task)]
    run_ranks(4, train_all, [config for config, _ in moves], timeout=400)
    for number in range(len(LAYOUTS)):
        train(make(f"to-one-{number}", {}, ("text", "depo")[number == 2]), progress=False)
    for config, task in moves:
        assert_same_report(tmp_path / config.run.name, expected[task])
