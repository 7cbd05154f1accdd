"""The engine and the optimiser against a plain torch loop; for two ranks see
tests/run/test_ranks.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from parallel.engine import Engine
from pretrain.run.optimizer import MuonAdamW
from tests import gathered
from tests.marks import slow
from tests.run import reference
from tests.run.by_engine import train
from tests.runs import assert_same


@pytest.fixture(scope="module")
def expected() -> reference.Trained:
    trained = reference.train(5)
    assert min(trained.norms) > 2 * reference.OPTIMIZER.clip, "clipping must be active"
    return trained


@pytest.mark.parametrize("zero", range(4))
def test_five_steps_equal_a_plain_torch_loop(zero: int, expected: reference.Trained) -> None:
    got = train(zero, "fp32", 1, 5)
    assert_same(got.weights, expected.weights, 1e-6)
    assert_same(got.moments, expected.moments, 1e-6)
    assert got.losses == pytest.approx(expected.losses, rel=1e-6)
    assert got.norms == pytest.approx(expected.norms, rel=1e-5)


def test_zero_3_does_not_move_the_whole_model_to_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where there may be room only for a share of it."""
    moved, to = list[Any](), torch.nn.Module.to

    def noted(self: torch.nn.Module, where: Any) -> torch.nn.Module:
        moved.append(where)
        return to(self, where)

    monkeypatch.setattr(torch.nn.Module, "to", noted)
    train(2, "bf16", 1, 0)
    assert moved == [torch.device("cpu")]
    moved.clear()
    train(3, "bf16", 1, 0)
    assert moved == [torch.bfloat16]


def test_a_gradient_below_the_clip_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "OPTIMIZER", replace(reference.OPTIMIZER, clip=100.0))
    expected, got = reference.train(3), train(1, "fp32", 1, 3)
    assert max(expected.norms) < 50
    assert_same(got.weights, expected.weights, 1e-6)
    assert_same(got.moments, expected.moments, 1e-6)


@pytest.mark.parametrize("zero", [slow(0), slow(1), 2, 3])
def test_microbatches_change_nothing(zero: int, expected: reference.Trained) -> None:
    got = train(zero, "fp32", 2, 5)
    assert_same(got.weights, expected.weights, 1e-6)
    assert got.norms == pytest.approx(expected.norms, rel=1e-5)


@pytest.mark.parametrize("zero", [slow(0), 1, slow(2), slow(3)])
def test_bf16_keeps_fp32_master_weights(zero: int) -> None:
    initial = dict(reference.model().named_parameters())
    expected, first = reference.train(5, torch.bfloat16), train(0, "bf16", 1, 5)
    assert_same(train(zero, "bf16", 1, 0).weights, initial, 0.0)
    got = train(zero, "bf16", 1, 5)
    norm = got.weights["norm.weight"]
    assert norm.dtype == torch.float32 and not torch.equal(norm, norm.bfloat16().float())
    assert got.losses == pytest.approx(expected.losses, rel=1e-3)
    # The last bit in fp32 can flip one in bf16, and Muon's steps have the same length whatever the
    # gradient's.
    assert_same(got.weights, expected.weights, 2e-2)
    if zero < 3:  # stage 3 sums the gradients of a parameter's uses in another order, in bf16
        assert_same(got.weights, first.weights, 1e-6)


@pytest.mark.parametrize(
    ("zero", "precision", "offload"),
    [
        (0, "fp32", False), slow(1, "fp32", False), (3, "fp32", False), slow(0, "bf16", False),
        (1, "bf16", False), (1, "bf16", True), slow(2, "bf16", True), slow(3, "bf16", True),
    ],
)  # fmt: skip
def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted(
    zero: int, precision: str, offload: bool
) -> None:
    net = reference.model()
    optimizer = MuonAdamW(net.named_parameters(), reference.OPTIMIZER)
    engine = Engine(net, optimizer, zero=zero, precision=precision, offload=offload)
    b = reference.batch(0)
    after = []
    for factor in (1.0, float("nan"), 1.0):
        engine.backward(engine(b).loss * factor, 30)
        engine.step()
        moments = {kind: m.clone() for kind, m in optimizer.moments.items()}
        after.append(
            (
                gathered.whole(engine.weights()),
                moments,
                float(optimizer.adam_steps),
                int(optimizer.skipped),
            )
        )
    (good, moments, _, _), (same, same_moments, _, _), (later, _, _, _) = after
    assert_same(same, good, 0.0)
    assert_same(same_moments, moments, 0.0)
    assert not torch.equal(later["head.weight"], good["head.weight"])
    assert [steps for _, _, steps, _ in after] == [1, 1, 2]
    assert [skipped for *_, skipped in after] == [0, 1, 1]
    assert all(torch.isfinite(w).all() for w in later.values())
