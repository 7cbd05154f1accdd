"""Runs ranks on several hosts by mpirun: the command line for the installed MPI, and its status.

    Open MPI          mpirun --host a:8,b:8 -np 16 ...
    MPICH, Intel      mpirun -hosts a,b -ppn 8 -np 16 ...

mpirun starts `hypnos launch rank` (launch/rank.py) on each host, by ssh or as configured. If one
fails, it ends all. On SIGTERM and Ctrl-C it would kill the ranks within a second, so here they are
replaced by SIGUSR1, which it forwards: the ranks save, and end.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from launch.processes import Rank, passing_signals_on
from launch.starts import rank_ends
from launch.world import FORWARDED
from pretrain.errors import UserError
from pretrain.exit_status import FINISHED


def mpirun(hosts: Sequence[str], ranks_per_host: int) -> list[str]:
    """mpirun's command line, without the command to start; no hosts: this host.

    Raises:
        UserError: there is no mpirun, or one of an unknown MPI.
    """
    program = shutil.which("mpirun")
    if program is None:
        fix = "load an MPI module, or apt install openmpi-bin; on one host: `hypnos launch local`"
        raise UserError(f"there is no mpirun here: {fix}")
    done = subprocess.run([program, "--version"], capture_output=True, text=True)
    said = done.stdout + done.stderr
    count = str(max(1, len(hosts)) * ranks_per_host)
    if "Open MPI" in said or "OpenRTE" in said:
        slots = ",".join(f"{host}:{ranks_per_host}" for host in hosts)
        names = [name for name in os.environ if name.startswith(FORWARDED)]
        return [
            program,
            *(["--allow-run-as-root"] if os.geteuid() == 0 else []),
            *(["--host", slots] if hosts else ["--oversubscribe"]),
            *["--bind-to", "none", "-np", count],
            *[word for name in names for word in ("-x", name)],
        ]
    if "HYDRA" in said or "Intel(R) MPI" in said:  # they forward all variables
        where = ["-hosts", ",".join(hosts), "-ppn", str(ranks_per_host)] if hosts else []
        return [program, *where, "-np", count]
    raise UserError(f"{program}: neither Open MPI nor MPICH nor Intel MPI: {said.splitlines()[:1]}")


def run_mpi(command: Sequence[str], logs: Path) -> int:
    """Runs mpirun to its end; its output is printed, and kept in LOGS/mpirun.log.

    Returns:
        mpirun's status; if that is 0, as MPICH's was seen to be after a signal, the status of a
        rank that did not finish; 128 + n if signal n was received here.
    """
    process = Rank(command, os.environ, logs / "mpirun.log", shown=True)
    instead: dict[int, int] = dict.fromkeys((signal.SIGTERM, signal.SIGINT), signal.SIGUSR1)
    with passing_signals_on([process], instead) as (_, received):
        while (status := process.status) is None:
            time.sleep(0.1)
        process.join()
    status = status or max((end.status for end in rank_ends(logs).values()), default=FINISHED)
    asked = [number for number in received if number != signal.SIGUSR1]
    return 128 + asked[0] if asked and status else status
