"""Checkpoints on disk: folders of safetensors, JSON and TOML. Reading them executes no code.

    RUN/checkpoints/
      latest                      the name of the newest checkpoint, updated last
      step-200/
        model.0.safetensors       rank 0's pieces of the parameters, fp32, by name
        optimizer.0.safetensors   momentum.NAME; exp_avg.NAME and exp_avg_sq.NAME
        state.0.safetensors       rng.*; lanes.* (memory of documents that continue); guard.sums;
                                    data.lanes (the stream's position in each row)
        model.1.safetensors ...   rank 1's; a rank without pieces of a kind writes no file
        state.json                step, position in the data, counters
        config.toml               the resolved configuration
        index.json                format version; where every piece belongs in its tensor; size and
                                  sha256 of each file; a hash of itself

A checkpoint is written under another name, flushed to disk and renamed, so it appears atomically.
Before reading, every byte is checked against the index; files that are not in it are ignored.

    folder.py   names, `latest`, what is kept         write.py   a rank's files, and the index
    index.py    the index, and its verification       read.py    whole tensors by name
    saver.py    asynchronous saves by all ranks
"""

from pretrain.checkpoint.folder import steps
from pretrain.checkpoint.index import Deleted, Unreadable, verify
from pretrain.checkpoint.read import (
    Checkpoint,
    latest_valid,
    open_checkpoint,
    resume_candidates,
)
from pretrain.checkpoint.saver import Saver, Snapshot

__all__ = [
    "Checkpoint",
    "Deleted",
    "Saver",
    "Snapshot",
    "Unreadable",
    "latest_valid",
    "open_checkpoint",
    "resume_candidates",
    "steps",
    "verify",
]
