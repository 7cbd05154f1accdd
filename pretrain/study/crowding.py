"""Measures how much slower CPU ranks get by sharing a host.

They share caches, memory and cores, and an interrupted rank finds caches cold; so the more ranks
there are, the more CPU time a block takes.
"""

from __future__ import annotations

import json
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing as mp

from parallel import mesh
from pretrain.config.schema import ModelConfig
from pretrain.origin import cores
from pretrain.study.one_block import one_block

CORES = cores()
SECONDS, ROUNDS = 1.5, 3  # if each has a core; times the number of ranks that share one
MAX_RANKS = 16


def measured_crowding(model: ModelConfig, rows: int, tokens: int) -> list[float]:
    """How many times longer blocks take with 2, 4, 8, ... ranks, up to four per core."""
    counts = [1]
    while counts[-1] < min(4 * CORES, MAX_RANKS):
        counts.append(2 * counts[-1])
    meet = mp.get_context("spawn").Barrier(counts[-1])
    with tempfile.TemporaryDirectory() as folder:
        asked = (Path(folder), meet, counts, model, rows, tokens)
        mp.start_processes(_rank, asked, nprocs=counts[-1], start_method="spawn")
        found = [json.loads(path.read_text()) for path in Path(folder).iterdir()]
    seconds, blocks = np.array(found).sum(axis=0).transpose(2, 0, 1)  # [ROUNDS, counts] each
    alone, *crowded = np.median(seconds / blocks, axis=0).tolist()
    return [max(1.0, took / alone) for took in crowded]


def _rank(
    rank: int, folder: Path, meet: Barrier, counts: list[int], model: ModelConfig, rows: int,
    tokens: int,
) -> None:  # fmt: skip
    """Writes (CPU seconds, blocks) for each round and count."""
    torch.set_num_threads(1)
    mesh.initialize(alone=True)
    blocks = [
        one_block(model, kind, rows, tokens, torch.float32) for kind in ("attention", "delta")
    ]

    def work(seconds: float) -> tuple[float, int]:
        end, begin, done = time.monotonic() + seconds, time.process_time(), 0
        while not done or time.monotonic() < end:
            for block in blocks:
                y = block()
                y.backward(torch.ones_like(y))
            done += len(blocks)
        return time.process_time() - begin, done

    def in_turn(count: int) -> tuple[float, int]:
        meet.wait()
        return work(SECONDS * max(1.0, count / CORES)) if rank < count else (0.0, 0)

    work(0.0)
    found = [[in_turn(count) for count in counts] for _ in range(ROUNDS)]
    (folder / str(rank)).write_text(json.dumps(found))
    mesh.shutdown()
