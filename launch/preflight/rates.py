"""Measures how fast each rank computes and sends, in about a second, so that slow ones are named.

An all-reduce is as slow as its slowest rank, so it does not tell which one that is. Each rank also
exchanges data with two others, in two rounds. A slow link or host is slow in both rounds, but its
partners are not, so a rank's rate is the better of the two.

    hosts    0   1   2   3        ranks with the same local rank on two hosts; or neighbours on one
    round 1  '---'   '---'
    round 2  .   '---'   .        and 3 with 0
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.distributed as dist

from launch.preflight.report import Rates
from parallel import mesh

# per kind of device: size of a square matrix, its dtype, elements that are sent (fp32)
SIZES = {"cuda": (8192, torch.bfloat16, 1 << 24), "cpu": (384, torch.float32, 1 << 18)}
REPEATS = 5
Stage = Callable[[str], None]


def measure(partners: Sequence[int], stage: Stage) -> Rates:
    """This rank's rates; all ranks call it together, once they are one group.

    Args:
        partners: see `choose_partners`.
        stage: called when a stage begins.
    """
    rows, dtype, elements = SIZES[mesh.device().type]
    stage("multiplying matrices")
    a, product = (torch.ones(rows, rows, dtype=dtype, device=mesh.device()) for _ in range(2))
    matmul = 2 * rows**3 / _seconds(lambda: torch.mm(a, a, out=product))

    stage("summing a tensor over all ranks")
    data, received = (torch.ones(elements, device=mesh.device()) for _ in range(2))
    size, world = data.nbytes, dist.get_world_size()
    # bytes that each rank sends and receives in a ring, whichever algorithm is used
    all_reduce = 2 * size * (world - 1) / world / _seconds(lambda: dist.all_reduce(data))

    exchanges = []
    for other in partners:
        stage(f"exchanging data with rank {other}")
        exchanges.append(size / _seconds(partial(_exchange, data, received, other)))
    if mesh.device().type == "cuda":
        del a, product, data, received
        torch.cuda.empty_cache()
    return Rates(matmul, max(exchanges, default=None), all_reduce)


def _exchange(data: torch.Tensor, received: torch.Tensor, other: int) -> None:
    sends = dist.P2POp(dist.isend, data, other)
    receives = dist.P2POp(dist.irecv, received, other)
    for work in dist.batch_isend_irecv([sends, receives]):
        work.wait()


def _seconds(act: Callable[[], object]) -> float:
    """The best time of several calls, after one to warm up."""
    times = []
    for _ in range(1 + REPEATS):
        _synchronize()
        begin = time.perf_counter()
        act()
        _synchronize()
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def _synchronize() -> None:
    if mesh.device().type == "cuda":
        torch.cuda.synchronize()


def choose_partners(hosts: Sequence[str]) -> list[list[int]]:
    """For each rank, its partners: one per round, if there is one.

    Args:
        hosts: of each rank.
    """
    places = defaultdict[str, list[int]](list)
    for rank, host in enumerate(hosts):
        places[host].append(rank)
    columns = list(places.values())
    if len(columns) == 1:
        columns = [[rank] for rank in columns[0]]
    partners: list[list[int]] = [[] for _ in hosts]
    for first in (0, 1):
        for i in range(first, len(columns) + first - 1, 2):
            for a, b in zip(columns[i], columns[(i + 1) % len(columns)], strict=False):
                partners[a].append(b)
                partners[b].append(a)
    return partners
