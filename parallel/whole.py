"""Whole tensors by name, put together on rank 0 from the ranks that share one model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from parallel import mesh


def assemble(mine: dict[str, Tensor], splits: Mapping[str, int | None]) -> dict[str, Tensor]:
    """Joins what the tp x pp ranks of one model hold: on its first rank everything whole, elsewhere nothing.

    Every rank sends its tensors as one run of bytes. A name that several stages have (a tied embedding) is taken once.

    Args:
        mine: CPU tensors of this rank, by the names that they have in the whole model.
        splits: the dimension in which the tensor-parallel ranks share each; None: each has all of it.
    """
    group = mesh.model_group()
    ranks = dist.get_process_group_ranks(group)
    if len(ranks) == 1:
        return mine
    # The widest elements first, so that among the bytes every tensor begins at a multiple of its elements' size.
    mine = dict(sorted(mine.items(), key=lambda item: -item[1].dtype.itemsize))
    entries = [(name, t.dtype, t.shape, splits[name]) for name, t in mine.items()]
    is_first = dist.get_rank() == ranks[0]
    directory: list[list[tuple[str, torch.dtype, torch.Size, int | None]]] = [[] for _ in ranks]
    dist.gather_object(entries, directory if is_first else None, ranks[0], group)
    if not is_first:
        dist.send(_bytes(mine), ranks[0], group)
        return {}
    parts: dict[str, list[Tensor]] = {}  # in the order of the tensor-parallel ranks
    dims: dict[str, int | None] = {}
    for rank, held in zip(ranks, directory, strict=True):
        sizes = [shape.numel() * dtype.itemsize for _, dtype, shape, _ in held]
        if rank == ranks[0]:
            values = list(mine.values())
        else:
            buffer = torch.empty(sum(sizes), dtype=torch.uint8, device=mesh.device())
            dist.recv(buffer, rank, group)
            raw = buffer.cpu().split(sizes)
            values = [r.view(dtype).view(shape) for r, (_, dtype, shape, _) in zip(raw, held, strict=True)]
        for (name, *_, dim), value in zip(held, values, strict=True):
            parts.setdefault(name, []).append(value)
            dims[name] = dim
    return {name: _joined(values, dims[name]) for name, values in parts.items()}


def _bytes(tensors: Mapping[str, Tensor]) -> Tensor:
    raw = [t.contiguous().flatten().view(torch.uint8) for t in tensors.values()]
    return torch.cat([torch.empty(0, dtype=torch.uint8), *raw]).to(mesh.device())


def _joined(parts: list[Tensor], dim: int | None) -> Tensor:
    return parts[0] if dim is None else torch.cat(parts[: mesh.tp_size()], dim)
