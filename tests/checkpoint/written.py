"""Checkpoints without a training run, written by one rank as the saver writes them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from parallel.slices import Piece, Slice
from pretrain.checkpoint import folder
from pretrain.checkpoint.write import write_common, write_part
from pretrain.config.schema import Config, DataConfig
from tests.run import reference

CONFIG = Config(model=reference.MODEL, sleep=reference.SLEEP, data=DataConfig(task="depo"))
STATE = {
    "optimizer": {"adam_steps": 2, "skipped": 1, "in_a_row": 0}, "data": {}, "tokens": 7,
    "rollbacks": {"total": 0, "here": 0}, "evaluated": True,
}  # fmt: skip


def whole(tensors: dict[str, Tensor]) -> dict[str, Piece]:
    """The tensors as a single rank holds them."""
    return {name: Piece(Slice.share(tuple(t.shape), {}), t) for name, t in tensors.items()}


def write(run: Path, step: int, keep: int = 5, keep_every: int = 0) -> Path:
    """A checkpoint of the reference model with weights of seed `step`."""
    weights = {
        name: p.detach().clone() for name, p in reference.model(seed=step).named_parameters()
    }
    folder.make_draft(run, step)
    draft = folder.draft_dir(run, step)
    tensors = {
        "model": whole(weights),
        "optimizer": whole({f"momentum.{n}": p * 2 for n, p in weights.items()}),
        "state": whole({"rng.cpu": torch.get_rng_state()}),
    }
    write_common(draft, step, [write_part(draft, 0, tensors)], STATE, CONFIG)
    folder.publish(run, step, keep, keep_every)
    return folder.checkpoint_dir(run, step)
