"""The settings of a cluster: one TOML file, ~/.config/hypnos/site.toml or --site.

    [slurm]          options of sbatch: account, partition, qos, constraint, ...
    [container]      the image that ranks run in
    [environment]    modules to load, and lines of shell before the ranks start

docs/launch.md has three such files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from parallel.setting import setting

DEFAULT = Path("~/.config/hypnos/site.toml")


@dataclass(kw_only=True)
class SlurmSite:
    """Options of sbatch and srun; empty ones are left to Slurm."""

    account: str = setting("", "the account that is charged")
    partition: str = setting("", "the queue")
    qos: str = setting("", "the quality of service")
    constraint: str = setting("", "features that nodes must have")
    exclude: str = setting("", "nodes to exclude, such as n[1-3],n7")
    reservation: str = setting("", "the reservation to use")
    gpus: str = setting(
        "gpus-per-node",
        "the option that requests GPUs: gpus-per-node, gres=gpu, or empty if nodes are exclusive",
    )
    cpus_per_task: int = setting(0, "cores per rank; 0: left to Slurm", at_least=0)
    mem: str = setting("", "memory per node; 0: all of it")
    mpi: str = setting(
        "",
        "srun --mpi, one of `srun --mpi=list`; empty: cray_shasta if it is listed, which gives "
        "ranks access to a Slingshot network, else none: ranks find each other without MPI",
    )
    save_before: int = setting(
        300, "seconds before the time limit at which the run saves", at_least=1, at_most=65535
    )
    sbatch: list[str] = setting([], 'further options of sbatch, such as ["--exclusive"]')
    srun: list[str] = setting([], "further options of srun")


@dataclass(kw_only=True)
class ContainerSite:
    """The container in which ranks run, if any; `hypnos` must be installed in it."""

    engine: Literal["none", "apptainer", "pyxis"] = setting(
        "none", "apptainer: `apptainer exec` in each task; pyxis: options of srun"
    )
    image: str = setting("", "a .sif or .sqsh file, or an image that the engine can fetch")
    mounts: list[str] = setting([], "mounts beside the working folder, such as /scratch:/scratch")
    options: list[str] = setting([], "further options of the engine, such as --nv")


@dataclass(kw_only=True)
class EnvironmentSite:
    """What is run before ranks start."""

    modules: list[str] = setting([], "modules to load")
    lines: list[str] = setting([], "shell lines, such as export NCCL_SOCKET_IFNAME=hsn0")


@dataclass(kw_only=True)
class Site:
    """All of a site's settings."""

    slurm: SlurmSite = field(default_factory=SlurmSite)
    container: ContainerSite = field(default_factory=ContainerSite)
    environment: EnvironmentSite = field(default_factory=EnvironmentSite)
