"""The coordinate check measures the output of the right pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pretrain.config.load import load
from pretrain.run import prepare
from pretrain.study.coordinates import _look, _Watched

DEPO = Path(__file__).parents[2] / "configs/studies/depo-cpu.toml"


@pytest.mark.parametrize("N", [1, 3])
def test_asleep_is_what_the_last_pass_over_the_first_window_leaves(N: int) -> None:
    config = load(DEPO, ["model.d_model=16", f"sleep.passes={N}", "train.batch=4"])
    source = prepare.make_source(config)
    config = prepare.resolve(config, source)
    model = _Watched(config.model, config.sleep).initialize(0)
    left: list[Tensor] = []  # outputs of the last block, per call
    model.blocks_of(slice(None))[-1].register_forward_hook(lambda *call: left.append(call[2][0]))
    seen = _look(model, source.next())
    assert len(left) == N + 2  # one window is slept over, two are predicted
    assert torch.equal(seen["asleep"], left[N - 1]) and torch.equal(seen["h"], left[-1])
