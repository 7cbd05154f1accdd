"""Two ranks, the second with bad losses and gradients; for test_wrong_numbers.py."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from parallel import mesh
from parallel.engine import Engine
from pretrain.config.schema import Config
from pretrain.data.batch import IGNORE
from pretrain.run import guard
from pretrain.run.optimizer import MuonAdamW
from tests import gathered
from tests.run import reference
from tests.run.planted import NAN, planted
from tests.runs import assert_same, train_all

# By step, factors of the second rank's loss: before backward, and in what it reports.
FAULTS = {
    1: (NAN, 1.0),
    3: (50.0, 1.0),
    4: (1.0, float("inf")),
    5: (float("inf"), float("inf")),
    6: (1.0, 50.0),
}
STEPS, SPIKE = 8, 5.0
TROUBLE = {1, 4, 5}  # the runs' bad batches
COMBINATIONS = [(zero, precision, False) for precision in ("fp32", "bf16") for zero in range(4)] + [
    (zero, "fp32", True) for zero in (1, 2, 3)
]


class Steps(NamedTuple):
    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    sums: Tensor  # from which the running means are computed


def steps(zero: int, precision: str, offload: bool, wrong: bool) -> Steps:
    """Trains on batch(0) .. batch(STEPS - 1), with FAULTS (`wrong`) or without those batches."""
    net = reference.model()
    optimizer = MuonAdamW(net.named_parameters(), reference.OPTIMIZER, SPIKE)
    engine = Engine(net, optimizer, zero=zero, precision=precision, offload=offload)
    for step in range(STEPS):
        if step in FAULTS and not wrong:
            continue
        whole = reference.batch(step)
        scored = int((whole.targets != IGNORE).sum())
        loss = engine(whole.split(mesh.dp_size())[mesh.dp_rank()]).loss
        factor, reported = FAULTS[step] if step in FAULTS and mesh.dp_rank() == 1 else (1.0, 1.0)
        before = [t.clone() for t in state(engine, optimizer, zero)]
        engine.backward(loss * factor, scored)
        optimizer.loss = guard.mean_loss([loss.detach()[None] * reported], scored)
        engine.step()
        accepted = bool(optimizer.accepted)
        assert accepted == (step not in FAULTS), (zero, precision, step, optimizer.filter.outcome)
        if not accepted:
            after = state(engine, optimizer, zero)
            assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), (
                zero,
                precision,
                step,
            )
        outcomes = [
            torch.empty_like(optimizer.filter.outcome) for _ in range(dist.get_world_size())
        ]
        dist.all_gather(outcomes, optimizer.filter.outcome)
        assert all(torch.equal(v.nan_to_num(), outcomes[0].nan_to_num()) for v in outcomes), (
            outcomes
        )
    trained = Steps(
        gathered.whole(engine.weights()), gathered.whole(optimizer.pieces()), optimizer.filter.sums
    )
    engine.close()
    return trained


def state(engine: Engine, optimizer: MuonAdamW, zero: int) -> list[Tensor]:
    """What a skipped step must not change on this rank. (Between steps, ZeRO 3 has no weights but
    the masters.)
    """
    weights = list(engine.model.parameters()) if zero < 3 else []
    return [
        *weights,
        engine.partition.flat,
        *optimizer.moments.values(),
        optimizer.adam_steps,
        optimizer.filter.sums,
    ]


def compare(expected: dict[str, Any], configs: list[Config]) -> None:
    """A rank's part: the engine in every configuration, then the runs.

    Args:
        expected: the fields of what `steps` returns in one process.
    """
    mesh.initialize()
    guard.WARMUP_STEPS = 1
    whole = Steps(**expected)
    for zero, precision, offload in COMBINATIONS:
        got, healthy = (steps(zero, precision, offload, wrong) for wrong in (True, False))
        assert torch.equal(got.sums, healthy.sums), (zero, precision)
        assert_same(got.weights, healthy.weights, 0.0)
        assert_same(got.moments, healthy.moments, 0.0)
        if precision == "fp32" and mesh.dp_rank() == 0:
            assert_same(got.weights, whole.weights, 1e-5)
            assert_same(got.moments, whole.moments, 1e-5)
    guard.WARMUP_STEPS = 20
    for config in configs:
        where = "embedded" if config.data.task == "text" and config.parallel.pp == 1 else "losses"
        with planted(TROUBLE, where):
            train_all([config])
