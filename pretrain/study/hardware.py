"""Specifications of hardware: the speed of devices and of the links between them, in TOML files.

configs/hardware/ has some kinds of GPU; `hypnos plan --measure FILE` measures the current machine.
A name (h100) is a file in that folder, anything else is a path.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from parallel.setting import REQUIRED, setting
from pretrain.config.load import read_settings
from pretrain.errors import UserError

FOLDER = Path(__file__).parents[2] / "configs/hardware"
GIB = 2**30
MAX_GPUS = 10_000


@dataclass(kw_only=True)
class DeviceSpec:
    """One GPU, or one core of a CPU."""

    name: str = setting(REQUIRED, "as its maker calls it")
    kind: Literal["cuda", "cpu"] = setting(
        "cuda", "cuda: in bf16 the delta rule is a kernel; cpu: it is not, and ranks share the host"
    )
    fused: bool = setting(
        True, "on CUDA elementwise work is compiled; false: TORCH_COMPILE_DISABLE=1"
    )
    memory_gib: float = setting(REQUIRED, "GiB of memory of a rank", above=0)
    reserved_gib: float = setting(
        0.0, "of these, what the runtime, NCCL and the allocator's gaps take", at_least=0
    )
    bf16_tflops: float = setting(REQUIRED, "dense bf16 TFLOP/s that MFU is a share of", above=0)
    fp32_tflops: float = setting(REQUIRED, "the same in fp32", above=0)
    product_share: float = setting(
        REQUIRED, "of these FLOP/s, what the matrix products of a block come to", above=0, at_most=1
    )
    attention_share: float = setting(
        REQUIRED, "what attention comes to, its scores counted as a full square", above=0
    )
    delta_share: float = setting(REQUIRED, "what the delta rule comes to", above=0)
    memory_gbs: float = setting(REQUIRED, "GB/s of memory that elementwise work reaches", above=0)
    launch_s: float = setting(REQUIRED, "seconds that the smallest operation takes", at_least=0)

    @property
    def bandwidth(self) -> float:
        """Memory bandwidth in bytes per second."""
        return self.memory_gbs * 1e9


@dataclass(kw_only=True)
class NodeSpec:
    """The devices of one host."""

    devices: int = setting(REQUIRED, "ranks on a host", at_least=1)
    shared: bool = setting(
        False, "more ranks than devices may run, and share them (cores of a CPU, for trials)"
    )
    link_gbs: float = setting(REQUIRED, "GB/s that a device sends to others of its host", above=0)
    latency_s: float = setting(REQUIRED, "seconds of one message on a host", at_least=0)
    host_gbs: float = setting(REQUIRED, "GB/s between a device and the host's memory", above=0)
    crowding: list[float] = setting(
        [], "how many times longer anything takes with 2, 4, 8, ... ranks on the host", at_least=1
    )

    def ranks(self, gpus: int) -> int:
        """How many of `gpus` ranks are on each host: all of them, or equally many on every host."""
        return gpus if self.shared or gpus <= self.devices else math.gcd(gpus, self.devices)


@dataclass(kw_only=True)
class NetworkSpec:
    """The network between hosts; not used on a single host."""

    link_gbs: float = setting(1.0, "GB/s that a device sends to other hosts", above=0)
    latency_s: float = setting(1e-4, "seconds of one message", at_least=0)


@dataclass(kw_only=True)
class PriceSpec:
    """The price."""

    per_hour: float = setting(0.0, "of one device; 0: costs are not shown", at_least=0)
    currency: str = setting("USD", "that it is paid in")


@dataclass(kw_only=True)
class Hardware:
    """The hardware that a plan is made for."""

    device: DeviceSpec
    node: NodeSpec
    network: NetworkSpec = field(default_factory=NetworkSpec)
    price: PriceSpec = field(default_factory=PriceSpec)

    def peak(self, precision: str) -> float:
        """The denominator of MFU, in FLOP/s: on a GPU the dense bf16 rate, as in `hypnos train`."""
        return self.flops("bf16" if self.device.kind == "cuda" else precision)

    def flops(self, precision: str) -> float:
        """The FLOP/s that the `_share` settings are relative to."""
        device = self.device
        return 1e12 * (device.bf16_tflops if precision == "bf16" else device.fp32_tflops)

    def shared_by(self, ranks: int) -> Hardware:
        """The hardware as each of so many ranks sees it: slower if they share a host's cores."""
        known = [1.0, *self.node.crowding]
        slower = known[min((ranks - 1).bit_length(), len(known) - 1)]
        device, node = self.device, self.node
        return replace(
            self,
            device=replace(
                device,
                product_share=device.product_share / slower,
                attention_share=device.attention_share / slower,
                delta_share=device.delta_share / slower,
                memory_gbs=device.memory_gbs / slower,
                launch_s=device.launch_s * slower,
            ),
            node=replace(node, link_gbs=node.link_gbs / slower, latency_s=node.latency_s * slower),
        )

    @property
    def usable_bytes(self) -> float:
        """How many bytes a rank may hold."""
        return (self.device.memory_gib - self.device.reserved_gib) * GIB


def names() -> list[str]:
    """Kinds of hardware that have a file in configs/hardware/."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_hardware(name: str) -> Hardware:
    """The hardware of that name, or of a file.

    Raises:
        UserError: there is none, or the file is refused.
    """
    if name in names():
        return _read(FOLDER / f"{name}.toml")
    if not Path(name).is_file():
        known = ", ".join(names())
        fix = f"name one of {known}, or a TOML file; `hypnos plan --measure FILE` writes one"
        raise UserError(f"--hardware {name}: no such hardware and no such file; {fix}")
    return _read(Path(name))


def _read(path: Path) -> Hardware:
    found = read_settings(Hardware, path)
    device = found.device
    if device.reserved_gib >= device.memory_gib:
        raise UserError(
            f"{path}: device.reserved_gib = {device.reserved_gib:g} leaves nothing of "
            f"device.memory_gib = {device.memory_gib:g}; lower it"
        )
    return found
