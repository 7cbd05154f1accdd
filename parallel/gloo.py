"""One gloo device for all groups of a process, where torch makes one for each.

A device is a thread that wakes a hundred times a second for as long as its group lives, and a grid
of ranks has some twenty groups. An idle rank took 1.4 % of a core for that, now 0.2 %; one that
computes on a busy machine took more.
"""

from __future__ import annotations

import os
from datetime import timedelta
from functools import cache
from typing import Any

import torch.distributed as dist

WORKERS = 2  # threads that carry out a group's collectives, for each device, as in torch


class _SharedDeviceGroup(dist.ProcessGroupGloo):
    """What `torch.distributed` takes for gloo once `share_device` was called."""

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: timedelta) -> None:
        options: Any = self._Options()  # type: ignore[attr-defined]
        options._devices = _devices()
        options._threads = WORKERS * len(options._devices)
        options._timeout = timeout
        super().__init__(store, rank, size, options)


def share_device() -> None:
    """Groups that are made from here on share devices; torch has no argument that would say so."""
    c10d: Any = dist.distributed_c10d
    c10d.ProcessGroupGloo = _SharedDeviceGroup


@cache
def _devices() -> list[Any]:
    """One for each network interface that GLOO_SOCKET_IFNAME names; without it, the host's."""
    named = os.environ.get("GLOO_SOCKET_IFNAME")
    if not named:
        return [dist.ProcessGroupGloo.create_default_device()]
    return [dist.ProcessGroupGloo.create_device(interface=name) for name in named.split(",")]
