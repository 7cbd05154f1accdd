"""Gradients through passes and windows, above all of the learned local rule, checked independently
by finite differences in fp64.
"""

import pytest
import torch
from torch import Tensor

from pretrain.data.batch import Batch
from pretrain.model.sleep import SleepLM
from tests.marks import slow
from tests.model.tiny import L, build, change, gradients, sequences

# First what decides what S takes in and what it forgets; then one parameter of each other kind.
RULE = tuple(
    f"blocks.{block}.mixer.{part}"
    for block in (1, 3)
    for part in ("A_log", "dt_bias", "beta.weight", "alpha.weight", "k.weight", "conv_k")
)
OTHERS = (
    "blocks.1.mixer.v.weight",
    "blocks.1.mixer.conv_v",
    "blocks.1.mixer.q.weight",
    "blocks.1.mixer.norm.weight",
    "blocks.0.mixer.q.weight",
    "blocks.2.mixer.k_norm.weight",
    "blocks.2.mlp.gate.weight",
    "embed.weight",
)


@pytest.mark.parametrize(
    "when, eviction", [("always", "hard"), slow("context", "hard"), slow("always", "sliding")]
)
def test_finite_differences(when: str, eviction: str) -> None:
    """A random direction in each parameter; for those in RULE also the steepest single entry."""
    model = build(change(passes=3, when=when, eviction=eviction))
    batch = sequences(3 * L, rows=1, unscored={0: [0, 1]} if when == "context" else {})
    exact = gradients(model, model(batch).loss)
    parameters = dict(model.named_parameters())
    for name in RULE + OTHERS:
        p, g = parameters[name], exact[name]
        directions = [
            torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=p.dtype)
        ]
        if name in RULE:
            assert g.abs().max() > 1e-3, name
            directions.append(
                torch.zeros_like(p).view(-1).index_fill(0, g.abs().argmax(), 1.0).view_as(p)
            )
        for direction in directions:
            expected = pytest.approx(float((g * direction).sum()), rel=1e-5, abs=1e-6)
            assert slope(model, batch, p, direction) == expected, name


@torch.no_grad()
def slope(model: SleepLM, batch: Batch, p: Tensor, direction: Tensor, step: float = 1e-6) -> float:
    """Central difference of the loss along a direction. Rounding adds 1e-8."""
    original, loss = p.clone(), []
    for sign in (1, -1):
        p.copy_(original + sign * step * direction)
        loss.append(model(batch).loss.item())
    p.copy_(original)
    return (loss[0] - loss[1]) / (2 * step)


@pytest.mark.parametrize("when", ["always", "context"])
def test_only_fast_weights_cross_a_boundary(when: str) -> None:
    """A later window's loss and an earlier window's embeddings are connected by S alone."""
    model = build(change(passes=2, when=when))
    batch = sequences(3 * L, rows=2, unscored={0: [0, 1], 1: [0, 1]})
    batch.starts[1, 2] = True  # the second row's state is zeroed before the scored window
    embedded = []
    model.embed.register_forward_hook(lambda _module, _inputs, h: embedded.append(h))
    g = torch.autograd.grad(model(batch).loss, embedded)
    for window in (0, 1):
        assert (g[window][0].abs().amax(dim=-1) > 1e-6).all()  # for every token
        assert (g[window][1] == 0).all()
    assert (g[2] != 0).any(dim=-1).all()
