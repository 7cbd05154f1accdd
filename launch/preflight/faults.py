"""Faults that a rank can find by itself: its GPU, its driver, its network interfaces."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace

import psutil
import torch

from launch.doctor import Finding, gpu_unused
from launch.world import World, given_gpus


def find(world: World | None) -> list[Finding]:
    """All findings of this rank."""
    local_rank, gpus = world.local_rank if world else 0, torch.cuda.device_count()
    present = list(psutil.net_if_addrs())
    return [
        *driver(os.environ),
        *own_gpu(local_rank, gpus),
        *(interfaces(os.environ, present, uses_nccl=gpus > 0) if world else ()),
    ]


def driver(environment: Mapping[str, str]) -> Iterator[Finding]:
    """A GPU that torch cannot use, because of its build or the driver. GPUs hidden by
    CUDA_VISIBLE_DEVICES are not meant to be used.
    """
    if environment.get("CUDA_VISIBLE_DEVICES", "0") not in ("", "-1", "NoDevFiles"):
        # a CPU build may be intended (make setup DEVICE=cpu), but not if the job has GPUs
        meant = torch.version.cuda is None and not given_gpus(environment)
        found = gpu_unused(environment)
        yield from (replace(each, state="note") if meant else each for each in found)


def own_gpu(local_rank: int, gpus: int) -> Iterator[Finding]:
    """Checks that every rank of a host has a GPU of its own."""
    if gpus and local_rank >= gpus:
        few = f"LOCAL_RANK = {local_rank}, but this host shows {gpus} GPUs"
        fix = (
            f"start {gpus} ranks per host (--ntasks-per-node={gpus}, --nproc-per-node={gpus}), and "
            "let each task see all GPUs of its host (no --gpus-per-task)"
        )
        yield Finding("fail", "gpu", few, fix)


def interfaces(
    environment: Mapping[str, str], present: Collection[str], *, uses_nccl: bool
) -> Iterator[Finding]:
    """Checks that NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME name interfaces of this host."""
    for name, chooses, needed in (
        ("NCCL_SOCKET_IFNAME", _nccl, uses_nccl),
        ("GLOO_SOCKET_IFNAME", _gloo, True),
    ):
        value = environment.get(name)
        if value and not any(chooses(value)(each) for each in present):
            there = ", ".join(sorted(present))
            fix = f"unset {name}, or set it to one of {there} (`ip link`)"
            found = f"{name} = {value} matches no network interface of this host"
            yield Finding("fail" if needed else "note", "network", found, fix)


def _nccl(value: str) -> Callable[[str], bool]:
    """A matcher with NCCL's syntax: prefixes of names; "=" first: whole names; "^" first:
    negated.
    """
    inverted, value = value.startswith("^"), value.removeprefix("^")
    exact, value = value.startswith("="), value.removeprefix("=")
    names = [name.partition(":")[0] for name in value.split(",") if name]

    def chosen(interface: str) -> bool:
        match = interface in names if exact else interface.startswith(tuple(names))
        return match != inverted

    return chosen


def _gloo(value: str) -> Callable[[str], bool]:
    return value.split(",").__contains__
