"""Run by torchrun on two ranks for test_two_ranks.py."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from parallel import mesh
from pretrain import trainer
from pretrain.config.load import load
from pretrain.evaluate import CollectPredictions
from tests.parallel.test_engine import train
from tests.run import reference
from tests.runs import assert_same


def main(folder: Path) -> None:
    mesh.initialize()
    assert mesh.dp_size() == 2
    compare(reference.Trained(**torch.load(folder / "expected.pt")))
    for path in sorted(folder.glob("*.toml")):
        trainer.train(load(path), progress=False)
    check_near_ties()
    mesh.shutdown()


def compare(expected: reference.Trained) -> None:
    """The engine at every stage, with one row and with two rows per backward."""
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
    """The likeliest of two tokens whose probabilities are the same in fp32, on ranks that share the
    vocabulary.
    """
    mesh.parallel_state.destroy_model_parallel()
    mesh.initialize(tp=2)
    logits = torch.zeros(1, 8)
    logits[0, 5], logits[0, 7] = 1e-9, 2e-9
    model: Any = SimpleNamespace(logits=lambda y: logits.chunk(2, dim=1)[mesh.tp_rank()].clone())
    batch: Any = SimpleNamespace(size=(1, 1))
    plan: Any = SimpleNamespace(scored=torch.tensor([0]), width=1, tokens=slice(0, 1))
    keeper = CollectPredictions(model, batch)
    keeper(plan, torch.zeros(1, 1), torch.tensor([3]))
    assert keeper.best.item() == 7


if __name__ == "__main__":
    main(Path(sys.argv[1]))
