"""Measures messages between two devices of this host: two processes all-reduce tensors.

On a CPU, CPU time is measured, including that of gloo's threads, as in `pretrain.study.measure`;
between all-reduces each process computes something, as ranks do, because being woken for a message
costs several times as much as when never asleep. On GPUs, NCCL is timed.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

SMALL, LARGE = 1 << 8, 1 << 20  # bytes: for the latency, and a typical tensor of a block
IN_A_ROW, TURNS = 10, 20
WORK = 384  # size of a matrix product that takes some milliseconds


class Links(NamedTuple):
    """In the terms of `pretrain.study.communication`: in an all-reduce, a ring of two sends a whole
    tensor in two messages.
    """

    gbs: float  # GB/s that a rank sends
    latency_s: float  # of a message


def measured_links(*, cuda: bool) -> Links:
    """Between two processes, or two GPUs: some seconds."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_rank, (folder, cuda), nprocs=2, start_method="spawn")
        small, large = json.loads((Path(folder) / "seconds").read_text())
    return Links((LARGE - SMALL) / (large - small) / 1e9, small / 2)


def _rank(rank: int, folder: str, cuda: bool) -> None:
    torch.set_num_threads(1)
    if cuda:
        torch.cuda.set_device(rank)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("nccl" if cuda else "gloo", store=store, rank=rank, world_size=2)
    device = "cuda" if cuda else "cpu"
    found = [_all_reduce_s(torch.zeros(n, dtype=torch.uint8, device=device).view(torch.float32))
             for n in (SMALL, LARGE)]  # fmt: skip
    if rank == 0:
        (Path(folder) / "seconds").write_text(json.dumps(found))
    dist.destroy_process_group()


def _all_reduce_s(x: Tensor) -> float:
    """Seconds of one, the median of some turns."""
    clock = time.perf_counter if x.is_cuda else time.process_time
    took, a = [], torch.ones(WORK, WORK)
    for turn in range(TURNS + 1):
        dist.barrier()
        begin, computed = clock(), 0.0
        for _ in range(IN_A_ROW):
            if not x.is_cuda:
                before = time.thread_time()
                a @ a
                computed += time.thread_time() - before
            dist.all_reduce(x)
        if x.is_cuda:
            torch.cuda.synchronize()
        if turn:  # the first is a warm-up
            took.append((clock() - begin - computed) / IN_A_ROW)
    return median(took)
