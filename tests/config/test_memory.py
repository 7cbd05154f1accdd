"""The advice when memory is short: what can be changed, and nothing that would be refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from launch.commands.train import train
from parallel import mesh
from pretrain import trainer
from pretrain.config.load import load
from pretrain.config.memory import make_room
from pretrain.errors import UserError

DEPO = Path(__file__).parents[2] / "configs/depo-small.toml"


@pytest.mark.parametrize(
    ("ranks", "device", "overrides", "changes"),
    [
        (1, "cpu", [], "train.microbatches=2, parallel.recompute=block"),
        (1, "cpu", ["train.batch=6", "train.microbatches=3"],
         "train.microbatches=6, parallel.recompute=block"),
        (4, "cuda", [], "train.microbatches=2, parallel.recompute=block, parallel.zero=2, "
         "parallel.tp=2, parallel.offload=true"),
        (4, "cuda", ["parallel.pp=2", "parallel.tp=2", "parallel.recompute=block",
                     "parallel.cuda_graphs=false", "train.precision=bf16"],
         "train.microbatches=2"),
        (1, "cuda", ["parallel.cuda_graphs=true", "parallel.recompute=unit", "train.batch=1",
                     "parallel.offload=true"], ""),
    ],
)  # fmt: skip
def test_what_makes_room(
    ranks: int,
    device: str,
    overrides: list[str],
    changes: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mesh, "device", lambda: torch.device(device))
    told = make_room(Path("a b.toml"), load(DEPO, overrides), ranks)
    plan = f" (`hypnos plan 'a b.toml' --gpus {ranks}` shows what is enough)"
    first = f"set one or more of {changes}{plan if device == 'cuda' else ''}, or "
    assert told == (first if changes else "") + "lower train.batch or sleep.window"


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_rank_without_room_says_what_makes_some(
    ranks: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_room(config: object) -> NoReturn:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def ends(status: int) -> NoReturn:
        raise SystemExit(status)

    monkeypatch.setattr(trainer, "train", no_room)
    monkeypatch.setattr(mesh, "world_size", lambda: ranks)
    monkeypatch.setattr(os, "_exit", ends)
    with pytest.raises(UserError if ranks == 1 else SystemExit) as raised:
        train.run(config=DEPO, overrides=[], no_preflight=True)
    told = capsys.readouterr().err if ranks > 1 else str(raised.value)
    assert f"{DEPO}: out of memory; set one or more of train.microbatches=2" in told
    assert "Traceback" not in told
