"""The analytic counts against torch's own counter on the real model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from parallel.block import MIXERS
from pretrain.config.schema import ModelConfig, SleepConfig
from pretrain.data.batch import IGNORE
from pretrain.model.flops import parameters, step_flops
from pretrain.model.sleep import SleepLM
from tests.run import reference

CASES = {
    "one pass": (SleepConfig(passes=1, window=8), {"attention_qkv_bias": True}),
    "sleep": (
        SleepConfig(passes=3, window=8),
        {"layers": ["delta", "attention"] * 2, "tie_embeddings": True},
    ),
    "context": (SleepConfig(passes=2, window=8, when="context"), {}),
    "parts": (
        SleepConfig(passes=2, window=8, prelude=1, coda=1),
        {"layers": ["attention", "delta"] * 2},
    ),
    "sliding": (
        SleepConfig(passes=2, window=8, eviction="sliding"),
        {"layers": ["delta", "attention"]},
    ),
    "truncated": (
        SleepConfig(passes=3, window=8, truncate_passes=2, truncate_windows=2),
        {"layers": ["delta", "attention"]},
    ),
    "truncated loops": (
        SleepConfig(passes=3, window=8, when="awake", truncate_passes=2),
        {"layers": ["delta", "attention"]},
    ),
    "padded chunks": (SleepConfig(passes=2, window=10), {"delta_chunk": 4}),
    **{kind: (SleepConfig(passes=2, window=8), {"layers": [kind] * 2}) for kind in MIXERS},
}


PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")


def counted(counter: FlopCounterMode, *operations: str) -> int:
    counts = counter.get_flop_counts()["Global"]
    return sum(n for op, n in counts.items() if str(op).removeprefix("aten.") in operations)


@pytest.mark.parametrize("case", CASES)
def test_forward_and_backward_of_a_batch(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sleep, changes = CASES[case]
    config: ModelConfig = replace(reference.MODEL, **changes)
    model = SleepLM(config, sleep).initialize(0)
    batch = reference.batch(0, rows=3, tokens=2 * sleep.window + 3)
    batch.starts = batch.starts.new_zeros(3, 3)
    batch.starts[:, 0] = True
    if sleep.when == "context":
        batch.targets[:, : 2 * sleep.window] = IGNORE
    # torch's counter does not know the CPU's fused attention; the plain one consists of bmm.
    solve, solved = torch.linalg.solve_triangular, 0  # matrix entries of all systems solved

    def counting(A: torch.Tensor, *rest: torch.Tensor, **how: bool) -> torch.Tensor:
        nonlocal solved
        solved += A.numel()
        return solve(A, *rest, **how)

    monkeypatch.setattr(torch.linalg, "solve_triangular", counting)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward:
        loss = model(batch).loss
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    done = step_flops(batch, config, sleep)
    # We do not count solving as a product; here it is one with the inverse, for keys and values.
    solving = 2 * solved * (config.delta_key_dim + config.delta_value_dim)
    assert done.forward + solving == counted(forward, *PRODUCTS)
    # Backward solves twice more: for the right-hand side, and for the matrix.
    assert done.backward + 2 * solving == pytest.approx(counted(backward, *PRODUCTS), rel=0.05)
    assert parameters(config) == sum(p.numel() for p in model.parameters())


def test_tokens_by_kind_of_pass() -> None:
    batch = reference.batch(0, rows=4, tokens=20)
    batch.starts = torch.tensor([[True, False, False]] * 4)
    done = step_flops(batch, reference.MODEL, SleepConfig(passes=3, window=8))
    # the last window, of 4 tokens, is not slept over
    assert (done.wake, done.sleep) == (80, 2 * 4 * 16)
    batch.carries[1] = True  # this row's document continues in the next batch
    assert step_flops(batch, reference.MODEL, SleepConfig(passes=3, window=8)).sleep == 2 * (
        4 * 16 + 4
    )
