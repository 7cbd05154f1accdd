"""Tensors that are sharded over the ranks, gathered whole on rank 0."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from parallel.slices import Piece, assemble


def whole(pieces: dict[str, Piece], partial: bool = False) -> dict[str, Tensor]:
    """Tensors by name on rank 0, nothing on others; all ranks call it. partial: see `assemble`."""
    mine = {
        name: Piece(where, values.detach().cpu().clone())
        for name, (where, values) in pieces.items()
    }
    everyone: list[dict[str, Piece]] = [{}] * dist.get_world_size()
    dist.gather_object(mine, everyone if dist.get_rank() == 0 else None)
    found: dict[str, list[Piece]] = {}
    for held in everyone:
        for name, piece in held.items():
            found.setdefault(name, []).append(piece)
    return {
        name: assemble(parts[0].where.shape, parts, partial)
        for name, parts in sorted(found.items())
    }
