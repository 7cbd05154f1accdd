"""Four ranks on two hosts that are network namespaces, by Open MPI, MPICH and torchrun."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from launch import starts
from tests.cluster.run_of import LONG, TRAIN, Run, arguments, assert_same, soon
from tests.cluster.slurm import sh

HOSTS = ("h0", "h1")
MPICH = Path("/usr/lib/x86_64-linux-gnu/libmpich.so.12")  # Debian's name; mpi4py loads libmpi.so.12
# what mpirun calls in place of ssh: options, host, command
AGENT = """#!/bin/bash
while [[ $1 == -* ]]; do shift; done
host=$1
shift
exec nsenter --target "$(<{folder}/$host.pid)" --net --uts -- sh -c "$*"
"""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two hosts, connected only by a virtual cable; a folder with `agent`, which reaches them."""
    folder = tmp_path_factory.mktemp("hosts")
    with ExitStack() as cleanup:
        for number, host in enumerate(HOSTS):
            inside = f"hostname {host}; ip link set lo up; exec sleep infinity"
            process = subprocess.Popen(["unshare", "--net", "--uts", "sh", "-c", inside])
            cleanup.callback(process.wait)
            cleanup.callback(process.kill)
            (folder / f"{host}.pid").write_text(str(process.pid))
            with Path("/etc/hosts").open("a") as names:
                names.write(f"10.111.0.{number + 1} {host}\n")
        while "sleep" not in sh("ps", "-o", "args=", (folder / "h1.pid").read_text()):
            time.sleep(0.1)
        pids = [(folder / f"{host}.pid").read_text() for host in HOSTS]
        ends = ["netns", pids[0], "type", "veth", "peer", "name", "cable", "netns", pids[1]]
        sh("ip", "link", "add", "cable", *ends)
        for number, pid in enumerate(pids):
            there = ["nsenter", "--target", pid, "--net", "ip"]
            sh(*there, "address", "add", f"10.111.0.{number + 1}/24", "dev", "cable")
            sh(*there, "link", "set", "cable", "up")
        agent = folder / "agent"
        agent.write_text(AGENT.format(folder=folder))
        agent.chmod(0o755)
        yield folder


def environment(hosts: Path, kind: str, library: str = "") -> dict[str, str]:
    """An environment in which mpirun belongs to this MPI, and reaches the hosts.

    Args:
        kind: openmpi or mpich.
        library: the one that mpi4py finds, if it is another MPI's.
    """
    tools = hosts / kind
    if not tools.exists():
        tools.mkdir()
        (tools / "mpirun").write_text(f'#!/bin/sh\nexec mpirun.{kind} "$@"\n')
        (tools / "mpirun").chmod(0o755)
        (tools / "libmpi.so.12").symlink_to(MPICH)
    found = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "OMPI_MCA_plm_rsh_agent": str(hosts / "agent"),  # Open MPI 4
        "PRTE_MCA_plm_ssh_agent": str(hosts / "agent"),  # 5
        "HYDRA_LAUNCHER": "ssh",
        "HYDRA_LAUNCHER_EXEC": str(hosts / "agent"),
    }
    if library:
        return found | {"MPI4PY_MPIABI": library}
    found["LD_LIBRARY_PATH"] = str(tools)  # both MPIs' libraries are found, as on Debian 13
    return found | ({"MPI4PY_MPIABI": kind} if kind == "mpich" else {})


def begin(hosts: Path, host: str, *command: str, **settings: Any) -> subprocess.Popen[str]:
    """Starts a command on a host; its output goes to the folder's `HOST.out`."""
    there = ["nsenter", "--target", (hosts / f"{host}.pid").read_text(), "--net", "--uts", "--"]
    with (hosts / f"{host}.out").open("w") as out:
        return subprocess.Popen([*there, *command], stdout=out, stderr=out, text=True, **settings)


class Launch:
    """`hypnos launch mpi` on h0, with two ranks on each host."""

    def __init__(self, hosts: Path, run: Path, kind: str, library: str = "") -> None:
        self.hosts, self.run = hosts, run
        Run.touched.append(run)
        where = ["--hosts", ",".join(HOSTS), "--ranks-per-host", "2"]
        command = [sys.executable, "-m", "launch", "launch", "mpi", *arguments(run), *where]
        self.process = begin(hosts, "h0", *command, env=environment(hosts, kind, library))

    def said(self) -> str:
        return (self.hosts / "h0.out").read_text(errors="replace")

    def until_step(self, step: int) -> None:
        deadline = time.monotonic() + LONG
        while (starts.newest_step(self.run) or 0) < step:
            assert time.monotonic() < deadline and self.process.poll() is None, self.said()
            time.sleep(0.1)

    def ranks(self) -> list[int]:
        """The processes of the ranks, on both hosts."""
        line = f"launch train {' '.join(arguments(self.run))}"
        found = subprocess.run(["pgrep", "-f", line], capture_output=True, text=True)
        return [int(pid) for pid in found.stdout.split()]


def test_four_ranks_on_two_hosts(hosts: Path, four_ranks: Path, tmp_path: Path) -> None:
    """One is killed: all end, the first death is reported, and the next start continues the run."""
    killed = Launch(hosts, tmp_path / "killed", "openmpi")
    killed.until_step(10)
    os.kill(killed.ranks()[-1], 9)
    assert killed.process.wait(LONG) == 137, killed.said()
    assert not killed.ranks()
    assert "ended with status 137 (SIGKILL)\nthe end of" in killed.said()
    (start,) = starts.starts(killed.run)
    assert start.nodes == HOSTS and start.ranks == 4 and start.end is not None
    failed = starts.first_failed(start.logs(killed.run))
    assert failed is not None
    death = starts.rank_ends(start.logs(killed.run))[failed]
    assert start.end.time - death.time < soon(four_ranks), killed.said()
    again = Launch(hosts, killed.run, "openmpi")
    assert again.process.wait(LONG) == 0, again.said()
    assert_same(again.run, four_ranks)


def test_plain_mpirun(hosts: Path, four_ranks: Path, tmp_path: Path) -> None:
    run = tmp_path / "plain"
    where = ["--allow-run-as-root", "--host", "h0:2,h1:2", "-np", "4", "--bind-to", "none"]
    mpirun = begin(
        hosts, "h0", "mpirun", *where, *TRAIN, *arguments(run), env=environment(hosts, "openmpi")
    )
    assert mpirun.wait(LONG) == 0, (hosts / "h0.out").read_text()
    assert_same(run, four_ranks)


def test_plain_torchrun(hosts: Path, four_ranks: Path, tmp_path: Path) -> None:
    run = tmp_path / "plain"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=2"]
    both = [
        begin(
            hosts, host, *torchrun, f"--node-rank={number}", "--master-addr=h0",
            "--master-port=29500", "--no-python", *TRAIN, *arguments(run),
        )
        for number, host in enumerate(HOSTS)
    ]  # fmt: skip
    said = [(hosts / f"{host}.out").read_text for host in HOSTS]
    assert [each.wait(LONG) for each in both] == [0, 0], "\n".join(read() for read in said)
    assert_same(run, four_ranks)


def test_torchrun_itself_keeps_no_status_apart_but_says_it() -> None:
    rank = [sys.executable, "-c", "raise SystemExit(75)"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--no-python"]
    done = subprocess.run([*torchrun, *rank], capture_output=True, text=True)
    assert done.returncode == 1 and re.search(r"exitcode +: 75", done.stderr)


def test_the_library_of_another_mpi(hosts: Path, tmp_path: Path) -> None:
    wrong = Launch(hosts, tmp_path / "wrong", "mpich", library="openmpi")
    assert wrong.process.wait(LONG) == 2, wrong.said()
    assert "mpirun started 4 ranks, but mpi4py found another MPI, Open MPI" in wrong.said()


def test_mpich_and_a_stop(hosts: Path, four_ranks: Path, tmp_path: Path) -> None:
    """SIGTERM to the launcher makes ranks save, and sets its status; another start continues."""
    run = Launch(hosts, tmp_path / "mpich", "mpich")
    run.until_step(10)
    run.process.terminate()
    assert run.process.wait(LONG) == 143, run.said()
    assert "is saved" in run.said() and not run.ranks()
    again = Launch(hosts, run.run, "mpich")
    assert again.process.wait(LONG) == 0, again.said()
    assert [start.end.status for start in starts.starts(run.run) if start.end] == [143, 0]
    assert_same(run.run, four_ranks)
