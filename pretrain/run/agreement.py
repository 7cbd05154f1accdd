"""What ranks agree on while they train: what to run, which rows; and what rank 0 does for all."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from parallel import mesh, talk, watchdog
from pretrain.data.batch import Batch
from pretrain.errors import UserError
from pretrain.model.plan import Agree, alone

T = TypeVar("T")


def agreement(zero: int) -> Agree:
    """How data-parallel ranks agree on what to run; needed under ZeRO 2 and 3, which reduce and
    gather layer by layer.
    """
    return _over_data_parallel_ranks if zero >= 2 and mesh.dp_size() > 1 else alone


def _over_data_parallel_ranks(values: Tensor) -> Tensor:
    dist.all_reduce(values, op=dist.ReduceOp.MAX, group=mesh.dp_group())
    return values


def check_same_rows(parts: Sequence[Batch]) -> None:
    """Checks that the ranks that together hold one model read the same rows; otherwise they would
    deadlock.

    Raises:
        UserError: on all of these ranks, naming one that differs from the first.
    """
    if mesh.tp_size() * mesh.cp_size() * mesh.pp_size() == 1:
        return
    watchdog.doing("comparing its rows with the other ranks of its model")
    content = 0
    for part in parts:
        for tensor in (part.tokens, part.targets, part.valid, part.starts, part.carries):
            content = zlib.crc32(tensor.contiguous().numpy().tobytes(), content)
    seen = torch.tensor([[dist.get_rank(), len(parts), *parts[0].size, content]])
    for group in (mesh.model_group(), mesh.cp_group()):
        seen = torch.cat(mesh.all_gather(seen, group))  # [ranks, 5]
    (first, *rows), *others = sorted(seen.tolist())
    for rank, *other in others:
        if other != rows:
            theirs, here = (" x ".join(map(str, shape[:3])) for shape in (other, rows))
            raise UserError(
                f"{mesh.describe_rank()}: rank {rank} reads other rows than rank {first}, "
                f"with which it shares a model: {theirs} against {here} "
                "(microbatches x rows x tokens); give all ranks the same configuration and data"
            )


def on_rank_0(what: str, act: Callable[[], T]) -> T:
    """Runs `act` on rank 0; every rank returns its value, which is picklable, or raises its
    UserError. There is no timeout: the others wait at the store, not in a collective.
    """
    value: Any = None
    failed, store = None, talk.store("rank 0")
    with watchdog.no_timeout(what):
        if dist.get_rank() == 0:
            try:
                value = act()
            except UserError as error:
                failed = str(error), error.status  # which tells a launcher whether to restart
            store.set("done", "")
        else:
            store.wait(["done"], talk.NO_TIMEOUT)
    value, failed = talk.from_rank_0((value, failed))
    if failed is not None:
        raise UserError(*failed)
    return value
