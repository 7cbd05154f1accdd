"""A rank's report before a run starts: where it is, what it has, what it sees."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from launch.doctor import Finding
from launch.preflight import faults
from launch.world import World, this_host
from parallel import mesh
from pretrain.run.facts import Facts

DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Report:
    """One rank's report; small, since rank 0 gets all of them."""

    rank: int
    host: str  # its name for the launcher
    device: str
    gpu: str  # the GPU's UUID; "" on a CPU
    gpus: int  # of this host that the rank sees
    driver: str
    disk_free: int  # bytes, where the run's folder is
    found: list[Finding]  # what it has found wrong by itself
    ahead: float = 0.0  # seconds by which its clock is ahead of rank 0's
    digest: str = ""  # of the facts
    facts: Facts | None = (
        None  # what must be the same on all ranks; from rank 0, and from ranks that differ
    )

    def encode(self) -> str:
        """As JSON, for the store."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, content: bytes) -> Report:
        """The inverse of `encode`."""
        fields = json.loads(content)
        return cls(**fields | {"found": [Finding(**each) for each in fields["found"]]})


@dataclass(frozen=True)
class Rates:
    """How fast a rank is."""

    matmul: float  # FLOP/s
    # bytes/s to and from another host, or another rank if there is only one host; None: no partner
    exchange: float | None
    all_reduce: float  # bytes/s of a sum over all ranks

    def encode(self) -> str:
        """As JSON, for the store."""
        return json.dumps(asdict(self))


def digest(facts: Facts) -> str:
    """A hash of the facts: equal on ranks with the same facts."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def look(world: World | None, run: Path) -> Report:
    """This rank's report, as far as it needs no others. run: its folder, which may not exist."""
    device, gpu, gpus = _device()
    where = next(folder for folder in (run, *run.absolute().parents) if folder.is_dir())
    return Report(
        rank=world.rank if world else 0,
        host=this_host(),
        device=device,
        gpu=gpu,
        gpus=gpus,
        driver=driver(),
        disk_free=shutil.disk_usage(where).free,
        found=faults.find(world),
    )


def _device() -> tuple[str, str, int]:
    """This rank's device in words, its GPU's UUID, and how many GPUs the rank sees."""
    if mesh.device().type == "cpu":
        return f"cpu ({platform.machine()})", "", 0
    count = torch.cuda.device_count()
    if (index := mesh.device().index or 0) >= count:
        return "no GPU of its own", "", count
    properties = torch.cuda.get_device_properties(index)
    return properties.name, str(properties.uuid), count


def driver() -> str:
    """The version of NVIDIA's driver; "" without one."""
    found = re.search(r"Kernel Module\D*([\d.]+)", DRIVER.read_text()) if DRIVER.exists() else None
    return found[1] if found else ""
