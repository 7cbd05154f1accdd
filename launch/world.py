"""Finds this rank's world: the only place that reads launchers' environment variables.

They are tried in this order, the innermost launcher first, since a launcher inside another inherits
its variables (mpirun inside a Slurm job):

    torchrun    RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT; also set by hand
    mpirun      of Open MPI, MPICH, Intel MPI: through mpi4py, which also distributes the address
    srun        SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_LOCALID of a job step, its list of nodes
    none        a world of one

Whichever the launcher, `join` sets torchrun's variables, for torch.distributed and DeepSpeed.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from zlib import crc32

from pretrain.errors import UserError

TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
# not SLURM_NTASKS: in a shell opened by salloc, a step of one task, it is the job's
SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_NODELIST")
SLURM_GPUS = ("SLURM_GPUS_ON_NODE", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "SLURM_GPUS_PER_NODE")
# variables with the rank, for use before MPI is initialised
RANK = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK", "SLURM_PROCID")
# prefixes of variables that matter to ranks: mpirun must be told to forward them
FORWARDED = (
    "PATH", "LD_LIBRARY_PATH", "PYTHON", "VIRTUAL_ENV", "OMP_", "MKL_", "CUDA_", "NCCL_", "GLOO_",
    "TORCH", "PYTORCH_", "TRITON_", "FLA_", "CUBLAS_", "HF_", "FI_", "UCX_", "HYPNOS_",
    # run.wandb and object stores: credentials and proxies
    "WANDB_",
    "AWS_", "GOOGLE_", "AZURE_", "FSSPEC_", "SSL_CERT_", "REQUESTS_", "http_proxy", "https_proxy",
    "no_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY",
)  # fmt: skip
PORTS = range(20_000, 30_000)  # below the ephemeral ports


@dataclass(frozen=True)
class World:
    """This rank's place in the world, and where rank 0 listens."""

    launcher: str
    rank: int
    size: int
    local_rank: int  # rank on this host: the index of its GPU
    address: str
    port: int

    def variables(self) -> dict[str, str]:
        """The variables as torchrun would set them."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(self.local_rank),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }


def join() -> World | None:
    """Finds this process's world, and sets torchrun's variables; None: it is alone.

    Raises:
        UserError: variables are incomplete, or contradict each other.
    """
    world = find(os.environ)
    if world is not None:
        os.environ |= world.variables()
    return world


def find(environment: Mapping[str, str]) -> World | None:
    """The world that a launcher's variables describe; see `join`."""
    if any(name in environment for name in ("RANK", "WORLD_SIZE")):
        return _torchrun(environment)
    if any(name in environment for name in MPI_SIZES) and not _is_srun(environment):
        return _mpi(environment)
    if "SLURM_STEP_ID" in environment:  # a batch script outside srun has none
        return _slurm(environment)
    return None


def early_rank(environment: Mapping[str, str]) -> int:
    """The rank according to a launcher's variables, for a process that starts a rank.

    Raises:
        UserError: they do not say it.
    """
    for name in RANK:
        if name in environment:
            return _number(environment, name)
    raise UserError(f"none of {', '.join(RANK)} is set: start ranks with srun or mpirun")


def _torchrun(environment: Mapping[str, str]) -> World:
    _all_set(environment, TORCHRUN, "start with torchrun, or unset them all")
    rank, size, port = (
        _number(environment, name) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT")
    )
    if not 1 <= port <= 65535:
        raise UserError(f"MASTER_PORT = {port} is not a port from 1 to 65535; choose another")
    local = _number(environment, "LOCAL_RANK") if "LOCAL_RANK" in environment else 0
    return _checked(World("torchrun", rank, size, local, environment["MASTER_ADDR"], port))


def _mpi(environment: Mapping[str, str]) -> World:
    if "OMPI_COMM_WORLD_SIZE" in environment:
        # where MPICH is installed too, as on Debian 13, mpi4py's wheel would load its library
        os.environ.setdefault("MPI4PY_MPIABI", "openmpi")
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise UserError(
            f"mpirun started this, but mpi4py cannot use its library ({error}): load the module of "
            "the MPI that mpirun belongs to, or start with torchrun or srun"
        ) from None
    everyone = MPI.COMM_WORLD
    started = next(_number(environment, name) for name in MPI_SIZES if name in environment)
    if everyone.size != started:
        library = MPI.Get_library_version().partition(",")[0].strip()
        raise UserError(
            f"mpirun started {started} ranks, but mpi4py found another MPI, {library}: "
            "set MPI4PY_MPIABI=mpich or openmpi, with mpirun's library on LD_LIBRARY_PATH"
        )
    local = everyone.Split_type(MPI.COMM_TYPE_SHARED)
    here = (_own_address(), _free_port()) if everyone.rank == 0 else None
    address, port = everyone.bcast(here, root=0)
    return World("mpirun", everyone.rank, everyone.size, local.rank, address, port)


def _slurm(environment: Mapping[str, str]) -> World:
    _all_set(environment, SLURM, "start ranks with srun")
    rank, size, local = (_number(environment, name) for name in SLURM[:3])
    first = next(hosts(environment["SLURM_STEP_NODELIST"]))
    # all ranks must get the same port, and a restarted job another one
    numbers = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    job = ".".join(environment.get(name, "") for name in numbers)
    port = PORTS[crc32(job.encode()) % len(PORTS)]
    return _checked(World("srun", rank, size, local, first, port))


def _is_srun(environment: Mapping[str, str]) -> bool:
    """Whether PMI's variables are those that srun itself sets (--mpi=pmi2)."""
    same = environment.get("PMI_SIZE") == environment.get("SLURM_STEP_NUM_TASKS")
    return "SLURM_STEP_ID" in environment and "OMPI_COMM_WORLD_SIZE" not in environment and same


def this_host() -> str:
    """This host's name, under Slurm the node name, which is needed to exclude a node."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def slurm_job(environment: Mapping[str, str]) -> str | None:
    """The Slurm job that this is part of, as 17, or 17_3 in an array; None: there is none.

    In an array the last task's SLURM_JOB_ID is the array's number, which means all tasks.
    """
    if "SLURM_ARRAY_JOB_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment.get("SLURM_JOB_ID")


def given_gpus(environment: Mapping[str, str]) -> str:
    """Which variable says that Slurm has given the job GPUs, as "SLURM_GPUS_ON_NODE = 4"; "" if
    none does.
    """
    given = ((name, environment.get(name, "0")) for name in SLURM_GPUS)
    return next((f"{name} = {value}" for name, value in given if value not in ("", "0")), "")


def expected_hosts(environment: Mapping[str, str]) -> list[str]:
    """The hosts that ranks should be on, if the launcher says so."""
    return list(hosts(environment.get("SLURM_STEP_NODELIST", "")))


def hosts(nodes: str) -> Iterator[str]:
    """The names in a Slurm list of nodes such as "login,gpu[01-03,7]-a"."""
    for name in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodes):
        bracket = re.search(r"\[([^\]]*)\]", name)
        if bracket is None:
            yield name
            continue
        for part in bracket[1].split(","):
            low, _, high = part.partition("-")
            for number in range(int(low), int(high or low) + 1):
                one = f"{name[: bracket.start()]}{number:0{len(low)}}{name[bracket.end() :]}"
                yield from hosts(one)


def _all_set(environment: Mapping[str, str], names: tuple[str, ...], fix: str) -> None:
    missing = [name for name in names if name not in environment]
    if missing:
        there = [name for name in names if name in environment]
        raise UserError(f"{', '.join(there)} set, but not {', '.join(missing)}: {fix}")


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment[name]
    if not text.isdecimal():
        raise UserError(f"{name} = {text!r} is not a whole number; let the launcher set it")
    return int(text)


def _checked(world: World) -> World:
    if world.rank >= world.size:
        raise UserError(
            f"rank {world.rank} of {world.size}: {world.launcher}'s variables contradict each "
            f"other; let {world.launcher} set them"
        )
    return world


def _own_address() -> str:
    """The address by which other hosts know this one."""
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        return name
    return name if address.startswith("127.") else address


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
