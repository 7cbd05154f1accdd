"""One pass over one window is transformers' Qwen3_5ForCausalLM."""

import dataclasses

import pytest
import torch

from tests.model.tiny import MODEL, assert_same, build, change, gradients, sequences
from tests.oracles import qwen
from tests.oracles.double import in_double

VARIANTS = {
    "hybrid": {},
    "tied embeddings": {"tie_embeddings": True},
    "all heads rotated, no groups": {
        "rotary_fraction": 1.0,
        "attention_kv_heads": 4,
        "delta_key_heads": 3,
    },
    "wide convolution": {"delta_conv_width": 6, "layers": ["delta", "delta"]},
    "attention only": {"layers": ["attention"]},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_loss_and_gradients(variant: str) -> None:
    model = build(change(passes=1, window=15), dataclasses.replace(MODEL, **VARIANTS[variant]))
    batch = sequences(15, window=15)
    seen = []
    out = model(
        batch, head=lambda plan, y, goal: seen.append(model.logits(y)) or model.losses(y, goal)
    )

    other = qwen.from_hybrid(model)
    with in_double():
        expected = other(batch.tokens, labels=batch.targets, shift_labels=batch.targets)
    tolerance = 1e-10
    assert_same({"logits": seen[0]}, {"logits": expected.logits.flatten(0, 1)}, tolerance)
    assert_same({"loss": out.loss / batch.targets.numel()}, {"loss": expected.loss}, tolerance)
    (expected.loss * batch.targets.numel()).backward()
    assert_same(gradients(model, out.loss), qwen.gradients(other, model.config), tolerance)


def test_in_fp32_as_transformers_runs_it() -> None:
    """With unmodified transformers code."""
    model = build(change(passes=1, window=70), dtype=torch.float32)
    batch = sequences(70, window=70)
    out = model(batch)
    other = qwen.from_hybrid(model)
    expected = (
        other(batch.tokens, labels=batch.targets, shift_labels=batch.targets).loss
        * batch.targets.numel()
    )
    expected.backward()
    assert_same({"loss": out.loss}, {"loss": expected}, 1e-6)
    assert_same(gradients(model, out.loss), qwen.gradients(other, model.config), 1e-5)
