"""A hybrid small enough for two backwards a second: all sizes differ, decays are slow."""

import dataclasses

import torch
from torch import Tensor

from pretrain.config.schema import ModelConfig, SleepConfig
from pretrain.data.batch import IGNORE, Batch
from pretrain.model.sleep import SleepLM
from tests.oracles import qwen
from tests.oracles.sleep import read

L = 6
MODEL = ModelConfig(
    d_model=16, attention_heads=4, attention_kv_heads=2, attention_head_dim=8,
    rotary_fraction=0.5, rope_theta=100.0,
    delta_key_heads=1, delta_value_heads=3, delta_key_dim=5, delta_value_dim=7, delta_chunk=4,
    mlp_width=20,
    norm_eps=1e-5, vocab_size=23, layers=["attention", "delta", "attention", "delta"],
)  # fmt: skip
SLEEP = SleepConfig(passes=2, window=L)


def build(
    sleep: SleepConfig = SLEEP, config: ModelConfig = MODEL, dtype: torch.dtype = torch.float64
) -> SleepLM:
    """A model in which every parameter matters: no zeros, no ones, decays from slow (A_log = -6) to
    fast.

    Projections have half the usual gain: with the full gain, three passes of random blocks are
    chaotic, and no tolerance in fp32 or bf16 would mean anything.
    """
    model = SleepLM(config, sleep).to(dtype)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            draw = torch.randn(p.shape, generator=g, dtype=torch.float64)
            if name.endswith("A_log"):
                draw = torch.linspace(-6, -1, len(p), dtype=torch.float64)
            elif name.endswith("mixer.norm.weight"):
                draw = 1 + 0.2 * draw
            elif p.dim() == 1:
                draw = 0.2 * draw
            elif not name.startswith("embed"):
                draw = 0.5 * draw * p.shape[1] ** -0.5
            p.copy_(draw)
    return model


def sequences(
    T: int, rows: int = 2, unscored: dict[int, list[int]] | None = None, window: int = L
) -> Batch:
    """Random tokens, one document per row; `unscored` lists a row's windows without targets."""
    g = torch.Generator().manual_seed(T)
    ids = torch.randint(1, MODEL.vocab_size, (rows, T + 1), generator=g)
    targets = ids[:, 1:].clone()
    for row, windows in (unscored or {}).items():
        for w in windows:
            targets[row, w * window : (w + 1) * window] = IGNORE
    starts = torch.zeros(rows, -(-T // window), dtype=torch.bool)
    starts[:, 0] = True
    valid, carries = torch.ones_like(targets, dtype=torch.bool), torch.zeros(rows, dtype=torch.bool)
    return Batch(ids[:, :-1].clone(), targets, valid, starts, carries)


def change(sleep: SleepConfig = SLEEP, **settings: int | str) -> SleepConfig:
    return dataclasses.replace(sleep, **settings)


def gradients(model: SleepLM, loss: Tensor) -> dict[str, Tensor]:
    """Gradients of every parameter; zeros where the loss does not reach."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    grads = torch.autograd.grad(loss, parameters, materialize_grads=True, allow_unused=True)
    return dict(zip(names, grads, strict=True))


def oracle(model: SleepLM, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """The oracle's reading: loss by row and window, and the gradients of its sum."""
    other = qwen.from_hybrid(model)
    losses, _ = read(other, batch, model.sleep)
    losses.sum().backward()
    return losses.detach(), qwen.gradients(other, model.config)


def assert_same(
    actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-10
) -> None:
    """Compares every tensor, relative to its own largest entry."""
    assert actual.keys() == expected.keys()
    for name, want in expected.items():
        want = want.double()
        error = (actual[name].double() - want.reshape(actual[name].shape)).abs().max()
        assert error <= tolerance * want.abs().max().clamp(min=1e-3), (
            f"{name}: {error:.1e} of {want.abs().max():.1e}"
        )


def assert_like_oracle(
    model: SleepLM, batch: Batch, tolerance: float = 1e-10
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compares loss by window and all gradients with transformers'. Returns ours."""
    out = model(batch)
    losses, expected = oracle(model, batch)
    assert_same({"loss": out.window_loss}, {"loss": losses.sum(0)}, tolerance)
    assert_same({"loss": out.loss.detach()[None]}, {"loss": losses.sum()[None]}, tolerance)
    found = gradients(model, out.loss)
    assert_same(found, expected, tolerance)
    return out.loss.detach(), found


def equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """Whether all are equal bit for bit."""
    return actual.keys() == expected.keys() and all(
        torch.equal(actual[n], expected[n]) for n in expected
    )
