"""The schedule, which parameters Muon updates, and where the shards are; the updates themselves are
in test_engine.py.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal, get_args, get_type_hints

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from parallel.engine import Engine
from parallel.zero_layout import WholeMatrices, shard_layout
from pretrain.config.schema import OptimizerConfig
from pretrain.data.batch import IGNORE
from pretrain.run.newton_schulz import newton_schulz
from pretrain.run.optimizer import (
    DECAYED,
    MUON,
    PLAIN,
    MuonAdamW,
    lr_factor,
    role,
)
from tests.run import reference


def test_schedule_warms_up_stays_and_decays() -> None:
    config = OptimizerConfig(warmup=4, decay=5, final_lr=0.1)
    rates = [lr_factor(step, 20, config) for step in range(20)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:15] == [1.0] * 11
    assert rates[-1] == pytest.approx(0.1)
    steps = [b - a for a, b in pairwise(rates[14:])]
    assert steps == pytest.approx([-0.18] * 5)
    assert lr_factor(0, 20, OptimizerConfig(warmup=0, decay=0)) == 1.0


def test_a_cosine_over_the_run_is_torchs() -> None:
    config = OptimizerConfig(warmup=4, decay=16, decay_shape="cosine", final_lr=0.1)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = CosineAnnealingLR(optimizer, T_max=16, eta_min=0.1)
    for step in range(4, 20):
        optimizer.step()
        theirs.step()
        assert lr_factor(step, 20, config) == pytest.approx(theirs.get_last_lr()[0])
    assert lr_factor(3, 20, config) == 1.0 and lr_factor(1, 20, config) == 0.5


def test_a_decay_by_the_square_root() -> None:
    config = OptimizerConfig(warmup=0, decay=16, decay_shape="sqrt", final_lr=0.2)
    rates = [lr_factor(step, 40, config) for step in range(40)]
    assert rates[:24] == [1.0] * 24
    gone = [((1.0 - rate) / 0.8) ** 2 for rate in rates[24:]]  # grows by the same amount each step
    assert gone == pytest.approx([k / 16 for k in range(1, 17)])


@pytest.mark.parametrize("shape", get_args(get_type_hints(OptimizerConfig)["decay_shape"]))
def test_every_shape_goes_from_the_peak_to_the_end(shape: Literal["linear"]) -> None:
    config = OptimizerConfig(warmup=2, decay=10, decay_shape=shape, final_lr=0.1)
    rates = [lr_factor(step, 30, config) for step in range(30)]
    assert rates[19] == 1.0 and rates[29] == pytest.approx(0.1)
    assert all(b < a for a, b in pairwise(rates[19:]))


def test_roles() -> None:
    roles = {name: role(name, p.shape, "muon") for name, p in reference.model().named_parameters()}
    assert {n for n, r in roles.items() if r == DECAYED} == {"embed.weight", "head.weight"}
    plain = {n for n, r in roles.items() if r == PLAIN}
    assert {n.rsplit(".", 1)[-1] for n in plain} == {
        "weight",
        "conv_q",
        "conv_k",
        "conv_v",
        "A_log",
        "dt_bias",
    }
    assert all("norm" in n for n in plain if n.endswith(".weight"))
    assert roles["blocks.1.mixer.beta.weight"] == roles["blocks.0.mlp.down.weight"] == MUON
    without = {role(name, p.shape, "adamw") for name, p in reference.model().named_parameters()}
    assert without == {DECAYED, PLAIN}


def first_step(**settings: Any) -> dict[str, torch.Tensor]:
    """How far one step moves each parameter."""
    net = reference.model()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    config = OptimizerConfig(warmup=0, weight_decay=0.0, **settings)
    optimizer = MuonAdamW(net.named_parameters(), config)
    engine = Engine(net, optimizer, zero=0, precision="fp32")
    batch = reference.batch(0)
    engine.backward(engine(batch).loss, int((batch.targets != IGNORE).sum()))
    engine.step()
    assert int(optimizer.adam_steps) == 1
    moved = {name: p.detach() - before[name] for name, p in net.named_parameters()}
    engine.close()
    return moved


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_a_share_of_the_learning_rate_is_a_share_of_the_step(name: str) -> None:
    shares = {"head_lr_share": 0.25, "residual_lr_share": 0.5, "body_lr_share": 0.125}
    whole, part = first_step(name=name), first_step(name=name, **shares)
    for place, moved in whole.items():
        share = 0.25 if place == "head.weight" else 1.0
        share *= 0.5 if place.endswith(("mixer.out.weight", "mlp.down.weight")) else 1.0
        is_body = reference.is_matrix_of_body(place, moved)
        share *= 0.125 if name == "adamw" and is_body else 1.0
        assert torch.allclose(part[place], share * moved, rtol=1e-3, atol=1e-8), place


@pytest.mark.parametrize("shape", [(3, 16, 24), (2, 24, 16)])
def test_newton_schulz_brings_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    G = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    U, _, Vh = torch.linalg.svd(G, full_matrices=False)
    X = newton_schulz(G)
    # the same singular vectors: this is diagonal
    turned = U.transpose(1, 2) @ X @ Vh.transpose(1, 2)
    values = torch.diagonal(turned, dim1=1, dim2=2)
    assert torch.allclose(turned, torch.diag_embed(values), atol=1e-4)
    assert float(values.min()) > 0.6 and float(values.max()) < 1.3


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_every_element_is_held_once_and_every_matrix_owned_once(stage: int, ranks: int) -> None:
    shapes = {
        "a": torch.Size([5, 3]),
        "b": torch.Size([5, 3]),
        "c": torch.Size([2, 7]),
        "d": torch.Size([1]),
    }
    part = -(-sum(s.numel() for s in shapes.values()) // ranks) + 2
    held = shard_layout(shapes, stage=stage, ranks=ranks, part=part)
    for name, shape in shapes.items():
        spans = sorted(
            (s.start, s.start + s.length) for shards in held for s in shards if s.name == name
        )
        assert [spans[0][0], spans[-1][1]] == [0, shape.numel()]
        assert all(a[1] == b[0] for a, b in pairwise(spans))
    for shards in held:
        ends = [s.offset + s.length for s in shards]
        assert all(s.offset >= end for s, end in zip(shards[1:], ends, strict=False))
        assert stage == 3 or not ends or ends[-1] <= part
    owner = WholeMatrices._owners({n: s for n, s in shapes.items() if len(s) == 2}, ranks)
    assert list(owner.values()) == sorted(owner.values()) and set(owner.values()) <= set(
        range(ranks)
    )
    work = [0] * ranks
    for name, rank in owner.items():
        m, n = shapes[name]
        work[rank] += m * n * min(m, n)
    assert max(work) <= sum(work) / ranks + 5 * 3 * 3  # even, but for one of the largest
    alone = shard_layout(shapes, stage=0, ranks=1, part=part)
    assert shard_layout(shapes, stage=0, ranks=ranks, part=part) == alone * ranks
