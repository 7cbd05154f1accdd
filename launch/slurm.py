"""A run as a Slurm job: makes the batch script from launch/slurm.sbatch, and submits it."""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch import HYPNOS
from launch.site import Site
from pretrain.errors import UserError

TEMPLATE = Path(__file__).with_name("slurm.sbatch")
WHERE = {"SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT"}  # the variables that say where to submit


@dataclass(frozen=True)
class Job:
    """What a job asks of Slurm."""

    name: str
    runs: Sequence[Sequence[str]]  # arguments of `hypnos train` per run; several make an array
    output: Path  # where the batch script's own output goes
    nodes: int
    gpus_per_node: int  # 0: none
    ranks_per_node: int
    time: str  # in Slurm's format; empty: the partition's
    at_once: int = 0  # array tasks at a time; 0: all


def script(job: Job, site: Site) -> str:
    """The batch script, ready for sbatch. UserError: it could not train, or not continue."""
    _check_time(job.time, site.slurm.save_before)
    if "/" in site.slurm.exclude:
        raise UserError(
            f"slurm.exclude = {site.slurm.exclude} (or --exclude): is a file, to which no "
            "failed node can be added; list the nodes instead, as n[1-3],n7"
        )
    image = _container(site)
    slots = {
        "SBATCH": "\n".join(f"#SBATCH {option}" for option in sbatch_options(job, site)),
        "SAVE_BEFORE": str(site.slurm.save_before),
        "ENVIRONMENT": "\n".join(
            [f"module load {shlex.quote(name)}" for name in site.environment.modules]
            + site.environment.lines
        ),
        "TRAIN": _train(job.runs),
        "HYPNOS": f"({shlex.join(_hypnos(site, image))})",
        "LOGS": shlex.quote(str(job.output.parent)),
        "RANKS": str(job.nodes * job.ranks_per_node),
        "EXCLUDE": shlex.quote(site.slurm.exclude),
        "HERE": "",
        "SRUN": "".join(f" {shlex.quote(option)}" for option in _srun(site)),
    }
    if site.container.engine == "pyxis":
        one = ["srun", "--overlap", "--nodes=1", "--ntasks=1", *image]
        slots["HERE"] = shlex.join(one) + " "
        slots["SRUN"] += "".join(f" {shlex.quote(option)}" for option in image)
    text = TEMPLATE.read_text()
    return re.sub(r"@([A-Z_]+)@", lambda match: slots[match[1]], text)


def _check_time(time: str, save_before: int) -> None:
    seconds = seconds_of(time) if time else math.inf
    if seconds is None:
        raise UserError(
            f"--time {time}: not a time limit of Slurm's: use HOURS:MINUTES:SECONDS, "
            "as 24:00:00, or DAYS-HOURS, as 2-0"
        )
    if seconds <= save_before:
        raise UserError(
            f"--time {time}: too short: the run saves slurm.save_before = {save_before} seconds "
            "before the limit; raise --time, or lower slurm.save_before in the site file"
        )


def seconds_of(time: str) -> float | None:
    """The seconds of a limit in Slurm's format: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S; 0 is no limit.

    None: it has another format.
    """
    if time.upper() in ("UNLIMITED", "INFINITE"):
        return math.inf
    if not re.fullmatch(r"(\d+-\d+|\d+)(:\d+){0,2}", time):
        return None
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    hours, minutes, seconds = (*parts, 0, 0)[:3] if dash or len(parts) == 3 else (0, *parts, 0)[:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds or math.inf


def sbatch_options(job: Job, site: Site) -> list[str]:
    """The options for sbatch, one per line."""
    slurm = site.slurm
    array = f"0-{len(job.runs) - 1}" + (f"%{job.at_once}" if job.at_once else "")
    options = {
        "job-name": job.name,
        "chdir": os.getcwd(),
        # only the file name has Slurm's %-patterns, not a folder such as lr-50%x
        "output": f"{str(job.output.parent).replace('%', '%%')}/{job.output.name}",
        "array": array if len(job.runs) > 1 else "",
        "nodes": str(job.nodes),
        "ntasks-per-node": str(job.ranks_per_node),
        "cpus-per-task": str(slurm.cpus_per_task or ""),
        "mem": slurm.mem,
        "time": job.time,
        "account": slurm.account,
        "partition": slurm.partition,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "exclude": slurm.exclude,
        "reservation": slurm.reservation,
    }
    # #SBATCH lines are split at spaces unless quoted
    given = [f"--{name}={shlex.quote(value)}" for name, value in options.items() if value]
    if job.gpus_per_node and slurm.gpus:
        given.append(f"--{slurm.gpus}{':' if '=' in slurm.gpus else '='}{job.gpus_per_node}")
    return given + slurm.sbatch


def submit(text: str, path: Path) -> str:
    """Writes a batch script to `path` and passes it to sbatch; returns the job's number."""
    if shutil.which("sbatch") is None:
        raise UserError("--submit: there is no sbatch here; run it on a login node of the cluster")
    path.write_text(text)
    # Within a job, sbatch would pass on what describes that one, and srun take it as options: ranks
    # would be bound to the processors of that job's step.
    others = ("SLURM", "PMI") if "SLURM_JOB_ID" in os.environ else ()
    environment = {
        name: value
        for name, value in os.environ.items()
        if name in WHERE or not name.startswith(others)
    }
    command = ["sbatch", "--parsable", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise UserError(f"sbatch refuses {path}: {done.stderr.strip() or done.stdout.strip()}")
    sys.stderr.write(done.stderr)  # messages of the site
    return done.stdout.strip().partition(";")[0]


def mpi_types() -> list[str]:
    """The types that `srun --mpi=list` offers here; empty without srun."""
    if shutil.which("srun") is None:
        return []
    done = subprocess.run(["srun", "--mpi=list"], capture_output=True, text=True)
    said = done.stdout + done.stderr
    types = re.findall(r"^(?:srun: )?\s*(\w+)$", said, re.MULTILINE)
    versions = re.search(r"versions available: (\S+)", said)  # of pmix, as pmix_v3,pmix_v4
    return types + (versions[1].split(",") if versions else [])


def _srun(site: Site) -> list[str]:
    found = mpi_types()
    # ranks need it only for the network, not to find each other (launch/world.py)
    mpi = site.slurm.mpi or ("cray_shasta" if "cray_shasta" in found else "none")
    if found and mpi not in found:
        raise UserError(f'slurm.mpi = "{mpi}": srun here supports only {", ".join(found)}')
    cpus = site.slurm.cpus_per_task  # srun does not inherit it from sbatch
    each = [f"--cpus-per-task={cpus}"] if cpus else []
    return [f"--mpi={mpi}", *each, *site.slurm.srun]


def _container(site: Site) -> list[str]:
    """The options that put a command into the site's container."""
    box, here = site.container, os.getcwd()
    if box.engine == "none":
        return []
    if not box.image:
        raise UserError(f'container.image is missing: container.engine = "{box.engine}" needs it')
    if box.engine == "apptainer":
        binds = [f"--bind={mount}" for mount in [here, *box.mounts]]
        return ["apptainer", "exec", *binds, f"--pwd={here}", *box.options, box.image]
    mounts = ",".join([f"{here}:{here}", *box.mounts])
    return [
        f"--container-image={box.image}",
        f"--container-mounts={mounts}",
        f"--container-workdir={here}",
        *box.options,
    ]


def _hypnos(site: Site, image: list[str]) -> list[str]:
    """The `hypnos` command on a node."""
    if site.container.engine == "none":
        return list(HYPNOS)
    return [*image, "hypnos"] if site.container.engine == "apptainer" else ["hypnos"]


def _train(runs: Sequence[Sequence[str]]) -> str:
    """The arguments of `hypnos train` as a bash array; in a job array, those of the task."""
    if len(runs) == 1:
        return f"({shlex.join(runs[0])})"
    lines = "".join(f"    {shlex.quote(shlex.join(run))}\n" for run in runs)
    return f'(\n{lines})\neval "train=(${{train[SLURM_ARRAY_TASK_ID]}})"'
