"""What may be skipped or recomputed without changing a bit."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from parallel.layers import cross_entropy
from parallel.passes import Pass
from pretrain import evaluate
from pretrain.evaluate import predict
from pretrain.model import hybrid, reader
from pretrain.model.plan import plan_passes
from tests.marks import slow
from tests.model.test_documents import padded
from tests.model.tiny import MODEL, L, assert_same, build, change, equal, gradients, sequences

SETTINGS = {
    "always": (change(passes=3), {}),
    "context": (change(passes=3, when="context"), {0: [0, 1], 1: [0, 1]}),
    "rows differ, coda": (change(passes=3, when="context", prelude=1, coda=1), {0: [0, 1], 1: [1]}),
    "sliding": (change(passes=3, eviction="sliding"), {0: [1]}),
    "truncated": (change(passes=3, truncate_passes=1, truncate_windows=2), {}),
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, slow(torch.float32)])
def test_recomputed_gradients_are_the_same_bit_for_bit(setting: str, dtype: torch.dtype) -> None:
    config, unscored = SETTINGS[setting]
    model = build(config, dtype=dtype)
    batch = padded(4 * L, [(3, 4 * L), (0, 4 * L - 2)], unscored)
    expected = model(batch, recompute="none")
    gradient = gradients(model, expected.loss)
    assert any(g.abs().sum() > 0 for g in gradient.values())
    for policy in ("unit", "block"):
        out = model(batch, recompute=policy)
        assert torch.equal(out.loss, expected.loss)
        assert equal(gradients(model, out.loss), gradient), policy


@pytest.mark.parametrize("policy", ["none", "unit"])
def test_logits_in_parts(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same loss, gradients and predictions; with recomputation no part outlives forward."""
    model, batch = build(), sequences(2 * L, rows=3)
    whole, predicted = model(batch).loss, predict(model, [batch])
    expected = gradients(model, whole)
    monkeypatch.setattr(hybrid, "MAX_LOGITS", 4 * MODEL.vocab_size + 1)
    seen, kept = [], []
    for module in (hybrid, evaluate):
        monkeypatch.setattr(
            module, "cross_entropy", lambda x, t: (seen.append(len(x)), cross_entropy(x, t))[1]
        )

    def keep(tensor: Tensor) -> Tensor:
        kept.extend([tensor] if tensor.shape == (4, MODEL.vocab_size) else [])
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(batch, recompute=policy).loss
    assert bool(kept) == (policy == "none")
    torch.testing.assert_close(loss, whole, rtol=1e-14, atol=0)
    assert_same(gradients(model, loss), expected, 1e-13)
    again = predict(model, [batch])
    assert torch.equal(again.best, predicted.best)
    torch.testing.assert_close(again.loss, predicted.loss)
    # 2 windows of 18 positions: forward, backward if it recomputes, predictions
    assert max(seen) == 4 and sum(seen) == 36 * (2 + (policy == "unit"))


@pytest.mark.parametrize("setting", SETTINGS)
def test_skipping_dead_compute_changes_nothing(
    setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The results equal, up to rounding, those of a run that computes every unit to its end.

    (Products, sums and convolutions then have other shapes, which some CPUs round differently.)
    """
    config, unscored = SETTINGS[setting]
    batch = sequences(4 * L, unscored=unscored)
    models = [build(config, dtype=dtype) for dtype in (torch.float32, torch.float64)]
    skipping = [model(batch) for model in models]
    cut_short = []

    def whole(*arguments: Any) -> tuple[Pass, ...]:
        passes = plan_passes(*arguments)
        cut_short.extend(p.write_only is not None for p in passes)
        core = range(config.prelude, len(MODEL.layers) - config.coda)
        coda = range(core.stop, len(MODEL.layers))
        return tuple(
            replace(p, core=core, coda=coda if p.reads else p.coda, write_only=None) for p in passes
        )

    monkeypatch.setattr(reader, "plan_passes", whole)
    complete = [model(batch) for model in models]
    assert True in cut_short and False in cut_short
    for a, b in zip(skipping, complete, strict=True):
        torch.testing.assert_close(a.loss, b.loss, rtol=4 * torch.finfo(a.loss.dtype).eps, atol=0)
    assert_same(
        gradients(models[1], skipping[1].loss), gradients(models[1], complete[1].loss), 1e-12
    )


def test_dead_compute_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a window's last pass the last delta block only writes: no read-out, no MLP, and no block
    after it.
    """
    model = build(change(passes=3, when="context"))  # attention, delta, attention, delta
    calls = {"block 2's MLP": 0, "block 3's MLP": 0, "block 3's read-out": 0, "block 3's mixer": 0}

    def count(module: torch.nn.Module, name: str) -> None:
        module.register_forward_hook(lambda *_: calls.update({name: calls[name] + 1}))

    count(model.blocks["2"].mlp, "block 2's MLP")
    count(model.blocks["3"].mlp, "block 3's MLP")
    count(model.blocks["3"].mixer.out, "block 3's read-out")
    count(model.blocks["3"].mixer, "block 3's mixer")
    model(sequences(2 * L, unscored={0: [0], 1: [0]}))  # 3 passes that consolidate, 1 that predicts
    assert calls == {
        "block 2's MLP": 4,
        "block 3's MLP": 3,
        "block 3's read-out": 3,
        "block 3's mixer": 4,
    }
