"""What ranks tell each other beside training: through the launcher's store, or from rank 0 to all.

They need have met (`parallel.mesh.join`), and no grid.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist

# seconds in which the threads of ranks that are alive answer each other through the store
STORE_TIMEOUT_S = 10.0
NO_TIMEOUT = timedelta(days=365)  # of a wait at the store, which has no other word for it
# what NCCL says where the fault is this rank's own: no memory left, say, or a GPU shared by two
OWN_FAULTS = ("ncclUnhandledCudaError", "ncclInvalidArgument", "ncclInvalidUsage")

_stores = itertools.count()


def store(purpose: str) -> dist.Store:
    """The launcher's key-value store, over a connection of its own; asked for by all ranks in the
    same order.

    For threads, in which a collective could meet one of the main thread.
    """
    common: Any = dist.distributed_c10d._get_default_store()
    return dist.PrefixStore(f"hypnos/{purpose}/{next(_stores)}", common.clone())


def leave_together(store: dist.Store, rank: int, ranks: Iterable[int]) -> None:
    """Call before exiting for a reason every rank knows; rank 0, which may host the store, waits
    for the others to leave.

    Args:
        ranks: those that rank 0 waits for.
    """
    with suppress(dist.DistError):  # one is dead, or does not wait
        store.set(f"gone/{rank}", "")
        if rank == 0:
            everyone = [f"gone/{other}" for other in ranks]
            store.wait(everyone, timedelta(seconds=STORE_TIMEOUT_S))


def from_rank_0(value: Any) -> Any:
    """A value of rank 0, on all ranks; what the others give is ignored."""
    box = [value]
    dist.broadcast_object_list(box, 0)
    return box[0]


def is_of_another_rank(error: Exception) -> bool:
    """Whether an error says that another rank has gone, so that its reason is to be found there."""
    said = str(error)
    if isinstance(error, dist.DistError):
        return not any(fault in said for fault in OWN_FAULTS)
    return isinstance(error, RuntimeError) and "gloo/transport" in said
