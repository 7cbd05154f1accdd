"""Run by torchrun on two ranks for test_two_ranks.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from parallel import mesh
from pretrain import settings, trainer
from tests.train import reference
from tests.train.test_engine import assert_same, train


def main(folder: Path) -> None:
    mesh.initialize()
    assert mesh.dp_size() == 2
    compare(reference.Trained(**torch.load(folder / "expected.pt")))
    for path in sorted(folder.glob("*.toml")):
        trainer.train(settings.load(path), progress=False)
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


if __name__ == "__main__":
    main(Path(sys.argv[1]))
