"""Messages between ranks outside the training step: by the launcher's store, or from rank 0 to all.

They need `parallel.mesh.join`, but no grid.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist

# seconds within which threads of live ranks answer each other through the store
STORE_TIMEOUT_S = 10.0
NO_TIMEOUT = timedelta(days=365)  # the store has no infinite timeout
# NCCL errors whose cause is this rank's own: out of memory, say, or two ranks on one GPU
OWN_FAULTS = ("ncclUnhandledCudaError", "ncclInvalidArgument", "ncclInvalidUsage")

_stores = itertools.count()


def store(purpose: str) -> dist.Store:
    """The launcher's key-value store, over a new connection. All ranks must call this in the same
    order.

    For use in threads, where a collective could be matched with one of the main thread.
    """
    common: Any = dist.distributed_c10d._get_default_store()
    return dist.PrefixStore(f"hypnos/{purpose}/{next(_stores)}", common.clone())


def leave_together(store: dist.Store, rank: int, ranks: Iterable[int]) -> None:
    """Call before exiting for a reason that every rank knows; rank 0, which may host the store,
    waits for the others to leave.

    Args:
        ranks: those that rank 0 waits for.
    """
    with suppress(dist.DistError):  # a rank is dead, or has already gone
        store.set(f"gone/{rank}", "")
        if rank == 0:
            everyone = [f"gone/{other}" for other in ranks]
            store.wait(everyone, timedelta(seconds=STORE_TIMEOUT_S))


def from_rank_0(value: Any) -> Any:
    """Rank 0's value, on all ranks; the others' argument is ignored."""
    box = [value]
    dist.broadcast_object_list(box, 0)
    return box[0]


def is_of_another_rank(error: Exception) -> bool:
    """Whether an error means that another rank has died, so that the cause is found there."""
    said = str(error)
    if isinstance(error, dist.DistError):
        return not any(fault in said for fault in OWN_FAULTS)
    return isinstance(error, RuntimeError) and "gloo/transport" in said
