"""A model in which sleep matters, in shapes that kernels support; batches with and without PAD."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from pretrain.config.schema import ModelConfig, SleepConfig
from pretrain.data.batch import IGNORE, Batch
from pretrain.model.probe import Probe
from pretrain.model.sleep import SleepLM

L = 80  # a window is longer than a chunk of 64, and not a multiple of it
MODEL = ModelConfig(
    d_model=64, layers=["delta", "attention", "delta"], vocab_size=96, mlp_width=96,
    attention_heads=4, attention_kv_heads=2, attention_head_dim=32,
    delta_key_heads=2, delta_value_heads=4, delta_key_dim=32, delta_value_dim=64,
    decay_init=[0.0005, 0.05], init_std=0.12, head_std=0.2,
)  # fmt: skip
SLEEP = SleepConfig(passes=3, window=L, when="always")


def build(
    device: torch.device, dtype: torch.dtype, eviction: str = "hard", seed: int = 0
) -> SleepLM:
    """A model with the same weights on every device."""
    sleep = dataclasses.replace(SLEEP, eviction=eviction)
    model = SleepLM(MODEL, sleep).initialize(seed)
    with torch.no_grad():  # norms and gates without effect would hide mistakes
        generator = torch.Generator().manual_seed(1)
        for name, p in model.named_parameters():
            if p.dim() == 1 and "A_log" not in name:
                p += 0.1 * torch.randn(p.shape, generator=generator)
    return model.to(device, dtype)


def batch(pad: bool, rows: int = 3) -> Batch:
    """Two and a half windows; if `pad`, with PAD at one row's end and another's beginning."""
    T = 2 * L + L // 2
    tokens = torch.randint(
        0, MODEL.vocab_size, (rows, T), generator=torch.Generator().manual_seed(T)
    )
    valid = torch.ones(rows, T, dtype=torch.bool)
    if pad:
        valid[0, -7:] = False
        valid[1, :9] = False
    targets = tokens.roll(-1, 1).masked_fill(~valid, IGNORE)
    targets[:, -1] = IGNORE
    starts = torch.zeros(rows, 3, dtype=torch.bool)
    starts[:, 0] = True
    return Batch(tokens, targets, valid, starts, torch.zeros(rows, dtype=torch.bool))


def loss_and_gradients(
    model: SleepLM,
    data: Batch,
    recompute: str = "none",
    passes: int | None = None,
    probe: Probe | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean loss, and the gradient of every parameter by name; both on the CPU."""
    model.zero_grad(set_to_none=True)
    out = model(data, recompute=recompute, passes=passes, probe=probe)
    loss = out.loss / (data.targets != IGNORE).sum()
    loss.backward()
    named = {name: p.grad.detach().cpu() for name, p in model.named_parameters()}
    return loss.detach().cpu(), named


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """|a - b| / |b|, over all tensors together."""
    square = sum((a[name].double() - b[name].double()).square().sum() for name in b)
    return float((square / sum(t.double().square().sum() for t in b.values())).sqrt())


def assert_same_bits(model: SleepLM, graphed: SleepLM) -> None:
    """Losses and gradients are equal for units run and replayed, with and without PAD, and on a
    logging step, which also reads the same decay.
    """
    for data, logs in ((batch(False), False), (batch(True), True), (batch(False), False)):
        probes = [Probe(), Probe()] if logs else [None, None]
        expected = loss_and_gradients(model, data, "unit", probe=probes[0])
        found = loss_and_gradients(graphed, data, "unit", probe=probes[1])
        looked = [probe.summary(model)["retention"] for probe in probes if probe]
        assert looked[:1] == pytest.approx(looked[1:], rel=1e-3)
        assert torch.equal(found[0], expected[0])
        for name, gradient in expected[1].items():
            assert torch.equal(found[1][name], gradient), name
