"""Gloo's groups share a device."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

from parallel import gloo


def test_a_group_more_is_no_loop_more() -> None:
    def threads() -> int:
        return len(os.listdir("/proc/self/task"))

    before = threads()
    groups = [dist.new_group([0]) for _ in range(4)]
    assert threads() - before == len(groups) * gloo.WORKERS
    ones = [torch.ones(1, dtype=torch.int64) for _ in groups]
    for one, group in zip(ones, groups, strict=True):
        dist.all_reduce(one, group=group)
        dist.destroy_process_group(group)
    assert sum(ones) == len(ones)
