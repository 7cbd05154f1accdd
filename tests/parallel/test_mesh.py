"""One grid after another in the same world: none leaves behind what goes on working."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from parallel import mesh
from tests.ranks import run_ranks


def gloos_threads() -> int:
    """Of this process."""
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    return sum("gloo" in name for name in names)


def lay_grids() -> tuple[int, list[tuple[int, int, float]]]:
    """The threads of the world alone; of each grid its threads, those it leaves, a sum of tp."""
    mesh.join()
    alone, found = gloos_threads(), []
    for tp in (1, 2, 1):
        mesh.initialize(tp)
        rank = torch.tensor([1.0 + dist.get_rank()])
        dist.all_reduce(rank, group=mesh.tp_group())
        has = gloos_threads()
        mesh.leave_grid()
        found.append((has, gloos_threads(), float(rank)))
    return alone, found


def test_a_grid_leaves_no_threads() -> None:
    for rank, (alone, found) in enumerate(run_ranks(2, lay_grids)):
        assert alone > 0
        assert [left for _, left, _ in found] == [2 * alone] * 3, (
            "Megatron keeps one until the next"
        )
        assert [total for _, _, total in found] == [rank + 1, 3, rank + 1]
        assert [has for has, _, _ in found] == [3 * alone] * 3, "a group of one rank, one of both"
