"""A real Slurm of three nodes on one machine, in a folder of its own (tests/cluster/run).

Every node is a slurmd with its own host name and its own view of the file system, so that one may
lack what the others share. Timeouts are short: a node is down after SlurmdTimeout seconds of
silence, a requeued job waits for the lifetime of a credential. Jobs are not forgotten.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

NODES = ("n0", "n1", "n2")
CONF = """
ClusterName=hypnos
SlurmctldHost={host}
SlurmctldPort={port}0
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdTimeout=12
KillWait=20
SlurmdParameters=config_overrides
ReturnToService=1
MinJobAge=3600
MailProg=/bin/true
NodeName=n0 NodeAddr=n0 Port={port}1 CPUs=8 RealMemory=8000
NodeName=n1 NodeAddr=n1 Port={port}2 CPUs=8 RealMemory=8000
NodeName=n2 NodeAddr=n2 Port={port}3 CPUs=8 RealMemory=8000
PartitionName=main Nodes=n[0-2] Default=YES MaxTime=INFINITE
PartitionName=first Nodes=n[0-2] PriorityTier=10 PreemptMode=OFF
"""


def sh(*command: str | Path, **settings: Any) -> str:
    """Runs a command; returns its output. An error has all of it."""
    done = subprocess.run(command, capture_output=True, text=True, **settings)
    said = f"{done.stdout}{done.stderr}"
    assert done.returncode == 0, f"{shlex.join(map(str, command))}: {said}"
    return done.stdout


class Cluster:
    """A context in which sbatch and the other commands are those of this cluster.

    Args:
        folder: for its state and logs; its path must be short, as it holds a socket.
        views: for some nodes, a line of shell that changes what they see in their mount namespace.
        number: of this cluster among those on the machine, each with its own ports; below 10.
    """

    def __init__(self, folder: Path, views: Mapping[str, str], number: int) -> None:
        self.folder, self._views, self._number = folder, views, number
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Cluster:
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir()
        conf = self.folder / "slurm.conf"
        conf.write_text(
            CONF.format(host=os.uname().nodename, folder=self.folder, port=1700 + self._number)
        )
        os.environ["SLURM_CONF"] = str(conf)
        self._start_munge()
        self._start("slurmctld", "slurmctld", "-D", "-f", str(conf))
        for node in NODES:
            self.start_node(node)
        self.until(lambda: set(self.states().values()) == {"idle"}, 120, "the nodes are idle", 0.5)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.wait(60)

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        files = {"key-file": key, "socket": self.folder / "munge.socket"}
        files |= {f"{name}-file": self.folder / f"munge.{name}" for name in ("log", "pid", "seed")}
        options = [f"--{name}={path}" for name, path in files.items()]
        self._start("munged", "munged", "--foreground", "--force", *options)
        self.until(files["socket"].exists, 60, "munged answers")

    def _start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as out:
            self._processes[name] = subprocess.Popen(command, stdout=out, stderr=out)

    def start_node(self, node: str) -> None:
        """Starts a node, or starts it again after `lose`."""
        view = self._views.get(node, "true")
        inside = f"hostname {node}; {view}; exec slurmd -D -N {node} -f {self.folder}/slurm.conf"
        self._start(node, "unshare", "--mount", "--uts", "bash", "-ec", inside)

    def lose(self, node: str) -> None:
        """Kills a node without warning, with everything that runs on it."""
        for pid in self.processes_of(node):
            os.kill(pid, signal.SIGKILL)
        self._processes[node].wait()

    def processes_of(self, node: str, what: str = "") -> list[int]:
        """Processes on a node, identified by its host name, whose command lines contain `what`."""
        namespace = os.readlink(f"/proc/{self._processes[node].pid}/ns/uts")
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if os.readlink(path / "ns/uts") == namespace and what in line:
                    found.append(int(path.name))
            except OSError:  # the process has ended
                continue
        return found

    def states(self) -> dict[str, str]:
        """Each node's state, as sinfo prints it."""
        lines = sh("sinfo", "-hN", "-p", "main", "-o", "%N %t").splitlines()
        return dict(line.split() for line in lines)

    def job(self, number: str) -> dict[str, str]:
        """The fields that `scontrol show job` prints."""
        said = sh("scontrol", "show", "job", "-o", number)
        return dict(re.findall(r"(?:^| )([A-Za-z/:]+)=(\S*)", said))

    def until(
        self, true: Callable[[], bool], seconds: float, what: str, every: float = 0.1
    ) -> None:
        """Waits until `true()`; an AssertionError says that it did not happen.

        Args:
            every: seconds between checks, more if a check runs a Slurm command.
        """
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, f"not in {seconds} s: {what}\n{self.log()}"
            time.sleep(every)

    def log(self) -> str:
        """The end of the controller's log."""
        path = self.folder / "slurmctld.log"
        return path.read_text()[-3000:] if path.exists() else ""
