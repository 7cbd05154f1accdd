"""A rank of a job that is going to be killed: the `hypnos train` command in a forked process.

A fork server imports this module, and with it all that is slow to import, once; a rank is forked
from it in milliseconds. Nothing here computes anything before that, so there are no threads that a
fork would lose. (Ranks that are forked from one server hash strings alike, which processes do not:
test_trainer.py resumes a run in a new process.)
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import deepspeed  # noqa: F401  (the trainer imports it when it needs it: too late for us)
import numpy as np
import torch

import pretrain.trainer  # noqa: F401
from launch import cli
from pretrain.data.batch import Batch
from pretrain.data.stream import TextStream
from pretrain.evaluate import Evaluation


def main(
    rank: int, world: int, port: int, config: Path, notes: Path, scratch: Path, clock: float
) -> None:
    """Runs one rank of `world`.

    Args:
        port: of the store at which the ranks meet.
        notes: folder of the job's own files: RANK.journal and RANK.log.
        scratch: the working directory, and where temporary files would go.
        clock: seconds that the clock of this rank is ahead.
    """
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "TMPDIR": str(scratch), "HOME": str(scratch),
    }  # fmt: skip
    tempfile.tempdir = None  # the server's
    os.setpgid(0, 0)
    os.chdir(scratch)
    # the server's would hide draws that nobody has seeded
    for seed in (random.seed, np.random.seed, torch.seed):
        seed()
    _write_to(notes / f"{rank}.log")
    _keep_journal(notes / f"{rank}.journal")
    if clock:
        now = time.time
        time.time = lambda: now() + clock
    sys.exit(cli.main(["train", str(config)]))


def _write_to(log: Path) -> None:
    """Sends what this process says to a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)


def _keep_journal(path: Path) -> None:
    """Notes, as it happens, what this rank reads and when it evaluates.

    A line is one write to the kernel, so it outlives the process: `step CRC` when a batch has been
        taken,
    `evaluates` and `evaluated`.
    """
    journal = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    take, evaluate = TextStream.next, Evaluation.run

    def noted_take(self: TextStream) -> Batch:
        batch = take(self)
        content = b"".join(tensor.contiguous().numpy().tobytes() for tensor in vars(batch).values())
        os.write(journal, f"step {zlib.crc32(content)}\n".encode())
        return batch

    def noted_evaluate(self: Evaluation, *arguments: Any) -> dict[str, Any]:
        os.write(journal, b"evaluates\n")
        found = evaluate(self, *arguments)
        os.write(journal, b"evaluated\n")
        return found

    TextStream.next, Evaluation.run = noted_take, noted_evaluate  # type: ignore[method-assign]
