"""Checkpoints on disk: folders of safetensors, JSON and TOML. Nothing is executed to read them.

    RUN/checkpoints/
      latest                      the name of the newest one, moved last
      step-200/
        model.0.safetensors       rank 0's pieces of the parameters, fp32, by name
        optimizer.0.safetensors   momentum.NAME; exp_avg.NAME and exp_avg_sq.NAME
        state.0.safetensors       rng.*; lanes.* (S of documents that go on); guard.sums;
                                    data.lanes (where the stream stands in each row)
        model.1.safetensors ...   rank 1's; a rank that has no piece writes no file
        state.json                step, position in the data, counters
        config.toml               the resolved configuration
        index.json                format version; where every piece lies in its tensor; size and
                                  sha256 of each file; and a hash of itself

A checkpoint is written under another name, flushed to disk and renamed: it is there whole, or not
at all. Reading checks every byte against the index first; what is not in the index proves nothing.

    folder.py   names, the pointer, what is kept      write.py   a rank's files, and the index
    index.py    what the index says, and damage       read.py    tensors by name, whole
    saver.py    all ranks together, beside training
"""

from pretrain.checkpoint.folder import steps
from pretrain.checkpoint.index import Deleted, Unreadable, verify
from pretrain.checkpoint.read import (
    Checkpoint,
    latest_valid,
    load_model,
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
    "load_model",
    "open_checkpoint",
    "resume_candidates",
    "steps",
    "verify",
]
