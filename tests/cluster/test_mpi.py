"""mpirun over two hosts that are network namespaces: four ranks, one of them killed, MPICH too."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from launch import starts
from tests.cluster.run_of import CONFIG, LONG, STEPS
from tests.cluster.slurm import sh
from tests.resume import saved

HOSTS = ("h0", "h1")
MPICH = Path("/usr/lib/x86_64-linux-gnu/libmpich.so.12")  # Debian's name; mpi4py loads libmpi.so.12
# what mpirun calls in ssh's place: options, host, command
AGENT = """#!/bin/bash
while [[ $1 == -* ]]; do shift; done
host=$1
shift
exec nsenter --target "$(<{folder}/$host.pid)" --net --uts -- sh -c "$*"
"""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two, joined by a cable, and by nothing else: a folder with `agent`, the way to get there."""
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


class Launch:
    """`hypnos launch mpi` on h0, of two ranks on each host."""

    def __init__(self, hosts: Path, run: Path, kind: str, library: str = "") -> None:
        self.run = run
        tools = hosts / kind
        tools.mkdir(exist_ok=True)
        (tools / "mpirun").unlink(missing_ok=True)
        (tools / "mpirun").write_text(f'#!/bin/sh\nexec mpirun.{kind} "$@"\n')
        (tools / "mpirun").chmod(0o755)
        environment = os.environ | {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "OMPI_MCA_plm_rsh_agent": str(hosts / "agent"),
            "HYDRA_LAUNCHER": "ssh",
            "HYDRA_LAUNCHER_EXEC": str(hosts / "agent"),
        }
        if library:
            environment["MPI4PY_MPIABI"] = library
        elif kind == "mpich":
            libraries = hosts / "lib"
            libraries.mkdir(exist_ok=True)
            if not (libraries / "libmpi.so.12").exists():
                (libraries / "libmpi.so.12").symlink_to(MPICH)
            environment |= {"MPI4PY_MPIABI": "mpich", "LD_LIBRARY_PATH": str(libraries)}
        command = ["-m", "launch", "launch", "mpi", str(CONFIG), f"run.dir={run.parent}"]
        where = ["--hosts", ",".join(HOSTS), "--ranks-per-host", "2", f"run.name={run.name}"]
        h0 = ["nsenter", "--target", (hosts / "h0.pid").read_text(), "--net", "--uts", "--"]
        self.out = hosts / f"{kind}-{run.name}.out"
        with self.out.open("ab") as out:
            self.process = subprocess.Popen(
                [*h0, sys.executable, *command, *where], env=environment, stdout=out, stderr=out
            )

    def said(self) -> str:
        return self.out.read_text(errors="replace")

    def until_step(self, step: int) -> None:
        deadline = time.monotonic() + LONG
        while (starts.newest_step(self.run) or 0) < step:
            assert time.monotonic() < deadline and self.process.poll() is None, self.said()
            time.sleep(0.1)

    def ranks(self) -> list[int]:
        """The processes of the ranks, on both hosts."""
        found = subprocess.run(
            ["pgrep", "-f", f"launch train {CONFIG}.* run.name={self.run.name}"],
            capture_output=True, text=True,
        ).stdout.split()  # fmt: skip
        return [int(pid) for pid in found]


def test_four_ranks_on_two_hosts(hosts: Path, tmp_path: Path) -> None:
    """One is killed: all end, the first death is told, and the next start goes on the same."""
    whole = Launch(hosts, tmp_path / "whole", "openmpi")
    assert whole.process.wait(LONG) == 0, whole.said()
    (start,) = starts.starts(whole.run)
    assert start.nodes == HOSTS and start.ranks == 4 and start.end is not None
    killed = Launch(hosts, tmp_path / "killed", "openmpi")
    killed.until_step(10)
    begin = time.monotonic()
    os.kill(killed.ranks()[-1], 9)
    assert killed.process.wait(10) == 137, killed.said()
    assert time.monotonic() - begin < 10 and not killed.ranks()
    assert "ended with status 137 (SIGKILL)\nthe end of" in killed.said()
    again = Launch(hosts, tmp_path / "killed", "openmpi")
    assert again.process.wait(LONG) == 0, again.said()
    saved.assert_same(saved.folder(again.run, STEPS), saved.folder(whole.run, STEPS))


def test_torchrun_itself_keeps_no_status_apart_but_says_it() -> None:
    rank = [sys.executable, "-c", "raise SystemExit(75)"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--no-python"]
    done = subprocess.run([*torchrun, *rank], capture_output=True, text=True)
    assert done.returncode == 1 and re.search(r"exitcode +: 75", done.stderr)


def test_the_library_of_another_mpi(hosts: Path, tmp_path: Path) -> None:
    wrong = Launch(hosts, tmp_path / "wrong", "mpich", library="openmpi")
    assert wrong.process.wait(60) == 2, wrong.said()
    assert (
        "mpirun started 4 ranks, but mpi4py is alone with the library of Open MPI" in wrong.said()
    )


def test_mpich_and_a_stop(hosts: Path, tmp_path: Path) -> None:
    """SIGTERM to the launch makes the ranks save, and is its status; another start goes on."""
    run = Launch(hosts, tmp_path / "mpich", "mpich")
    run.until_step(10)
    run.process.terminate()
    assert run.process.wait(60) == 143, run.said()
    assert "is saved" in run.said() and not run.ranks()
    again = Launch(hosts, tmp_path / "mpich", "mpich")
    assert again.process.wait(LONG) == 0, again.said()
    assert [start.end.status for start in starts.starts(run.run) if start.end] == [143, 0]
