"""One grid after another in the same world: none leaves threads behind."""

from __future__ import annotations

import os
import time

import torch
import torch.distributed as dist

from parallel import mesh, talk
from pretrain.config.memory import out_of_memory
from tests.ranks import run_ranks


def threads() -> int:
    """The number of threads of this process, once it has been constant for a while."""
    found = [-1]
    while found[-3:] != [found[-1]] * 3:
        found.append(len(os.listdir("/proc/self/task")))
        time.sleep(0.1)
    return found[-1]


def lay_grids() -> tuple[int, list[tuple[int, int, float]]]:
    """The world's threads; for each grid how many it adds, how many it leaves, a sum over tp."""
    before = threads()
    mesh.join()
    world, found = threads() - before, []
    for tp in (1, 2, 1):
        mesh.initialize(tp)
        rank = torch.tensor([1.0 + dist.get_rank()])
        dist.all_reduce(rank, group=mesh.tp_group())
        has = threads() - before - world
        mesh.leave_grid()
        found.append((has, threads() - before - world, float(rank)))
    return world, found


def test_a_grid_leaves_no_threads() -> None:
    for rank, (world, found) in enumerate(run_ranks(2, lay_grids)):
        assert world > 0
        assert [has for has, _, _ in found] == [2 * world] * 3, "a group of one rank, one of both"
        assert [left for _, left, _ in found] == [0] * 3
        assert [total for _, _, total in found] == [rank + 1, 3, rank + 1]


def test_whose_fault_an_error_of_nccl_is() -> None:
    remote = "ncclRemoteError: A call failed possibly due to a network error"
    own = "ncclUnhandledCudaError: Call to CUDA function failed.\nCuda failure 2 'out of memory'"
    of_remote, of_own = (
        dist.DistBackendError(f"NCCL error in: ProcessGroupNCCL.cpp:94\n{what}")
        for what in (remote, own)
    )
    assert talk.is_of_another_rank(of_remote) and not out_of_memory(of_remote)
    assert not talk.is_of_another_rank(of_own) and out_of_memory(of_own)
