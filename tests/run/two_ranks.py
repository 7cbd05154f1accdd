"""Comparisons of two ranks with one process; for test_ranks.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from parallel import mesh
from pretrain.evaluate import CollectPredictions
from tests.run import reference
from tests.run.by_engine import train
from tests.runs import assert_same


def compare(whole: dict[str, Any]) -> None:
    """The engine at every stage, with one row and with two rows per backward.

    Args:
        whole: the fields of what `reference.train` returns.
    """
    mesh.initialize()
    expected = reference.Trained(**whole)
    for zero in range(4):
        for microbatches in (1, 2):
            got = train(zero, "fp32", microbatches, 4)
            assert got.losses == pytest.approx(expected.losses, rel=1e-5), (zero, microbatches)
            assert got.norms == pytest.approx(expected.norms, rel=1e-5), (zero, microbatches)
            if mesh.dp_rank() == 0:
                assert_same(got.weights, expected.weights, 1e-5)
                assert_same(got.moments, expected.moments, 1e-5)
            else:
                assert not got.weights and not got.moments
        got = train(zero, "bf16", 1, 4)
        assert got.losses == pytest.approx(expected.losses, rel=2e-2), zero


def check_near_ties() -> None:
    """The likeliest of two tokens with equal probabilities in fp32, on ranks that split the
    vocabulary.
    """
    mesh.initialize(tp=2)
    logits = torch.zeros(1, 8)
    logits[0, 5], logits[0, 7] = 1e-9, 2e-9
    model: Any = SimpleNamespace(
        in_parts=lambda *whole: [whole],
        logits=lambda y: logits.chunk(2, dim=1)[mesh.tp_rank()].clone(),
    )
    batch: Any = SimpleNamespace(size=(1, 1))
    plan: Any = SimpleNamespace(scored_index=torch.tensor([0]), own_width=1, own=slice(0, 1))
    keeper = CollectPredictions(model, batch)
    keeper(plan, torch.zeros(1, 1), torch.tensor([3]))
    assert keeper.best.item() == 7
