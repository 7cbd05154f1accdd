"""Real ranks: a function that runs on several processes at once, forked from a server.

    losses = run_ranks(2, train, config)  # `train(config)` on both ranks; a list of their results

The fork server imports slow modules once, when ranks are first requested; ranks are then forked
from it in milliseconds, each with its own globals. Nothing computes in the server, so there are no
threads that a fork would lose. Every pytest process (also of pytest-xdist) has its own server.
Ranks of one server hash strings alike, unlike those of a launcher: tests of what depends on that
have to start a new process.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import pickle
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from multiprocessing import connection, forkserver
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest  # noqa: F401  (test modules import it, and ranks import those)
import torch
import torch._dynamo  # otherwise imported by the first optimiser, and what is below by the engine

import pretrain.trainer  # noqa: F401
from launch import cli  # noqa: F401
from launch.store import listen
from parallel import mesh
from parallel.uncompiled import uncompiled

with uncompiled():
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401

ROOT = Path(__file__).parents[1]
IMPORTED_BY = os.getpid()  # the server's pid, as ranks see it
GRACE = 10.0  # seconds in which ranks must end by themselves once one has failed
SHOWN = 6000  # characters of a rank's output in an error

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload([__name__])


def run_ranks(
    world: int,
    function: Callable[..., Any],
    *args: Any,
    timeout: float = 300.0,
    env: dict[str, str] | None = None,
) -> list[Any]:
    """Runs `function(*args)` on `world` ranks, which find each other as under a launcher.

    Args:
        function: at module level (it is sent by name). It may call `mesh.initialize`; the world is
            left for it at the end. Its arguments and result must be picklable.
        timeout: seconds after which ranks that are still there are killed.
        env: added to the environment of this process.
    Returns:
        What each rank has returned.
    Raises:
        AssertionError: some rank has raised, died or not ended; has the output of these ranks.
    """
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        ranks = Ranks(world, function, *args, folder=Path(folder), env=env)
        try:
            ranks.finish(timeout)
            return [ranks.result(r) for r in range(world)]
        finally:
            ranks.kill()


class Ranks:
    """Ranks that have been started, for tests that stop and kill some.

    Args:
        world, function, args, env: see `run_ranks`.
        folder: gets R.log, what rank R writes to stdout and stderr, and R.result.
        rank_0_has_store: the ranks' store is part of rank 0, as under srun, and ends with it;
            otherwise it is part of this process, as torchrun has it.
    """

    def __init__(
        self,
        world: int,
        function: Callable[..., Any],
        *args: Any,
        folder: Path,
        env: dict[str, str] | None = None,
        rank_0_has_store: bool = False,
    ) -> None:
        self.folder, self.began = folder, time.monotonic()
        given = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"} | (env or {})
        if rank_0_has_store:
            given["MASTER_PORT"] = str(free_port())
        else:
            self._store = listen("127.0.0.1")
            given |= {
                "MASTER_PORT": str(self._store.port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",
                "TORCHELASTIC_RESTART_COUNT": "0",
            }
        work = pickle.dumps((function, args))  # multiprocessing would share tensors, not copy them
        _start_server()
        self.processes = [
            _processes.Process(
                target=_main, args=(r, os.environ | given, folder, work), daemon=True
            )
            for r in range(world)
        ]
        for process in self.processes:
            process.start()

    @property
    def alive(self) -> bool:
        """Whether any rank is alive."""
        return any(process.is_alive() for process in self.processes)

    @property
    def statuses(self) -> list[int | None]:
        """Each rank's exit status: -N if signal N has killed it, None if it is alive."""
        return [process.exitcode for process in self.processes]

    def wait(self, seconds: float) -> list[int | None]:
        """Waits at most `seconds` for the ranks to end; their statuses."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        return self.statuses

    def finish(self, seconds: float) -> None:
        """Waits for the ranks to finish their work; an AssertionError says which did not, and why.

        When one fails, the others have GRACE seconds to end. Those that are killed print their
        stacks.
        """
        deadline, failed = time.monotonic() + seconds, []
        running = dict(enumerate(self.processes))
        while running and (left := deadline - time.monotonic()) > 0:
            connection.wait([process.sentinel for process in running.values()], left)
            for r in [r for r, process in running.items() if not process.is_alive()]:
                if running.pop(r).exitcode:
                    failed.append(r)
                    deadline = min(deadline, time.monotonic() + GRACE)
        for r in running:
            self.signal(signal.SIGABRT, [r])  # prints its stacks: see faulthandler in _main
        if failed or running:
            self.wait(GRACE / 5)
            self.kill()
            raise AssertionError("\n".join(self.told(r) for r in [*failed, *running]))

    def result(self, r: int) -> Any:
        """What a finished rank has returned."""
        return pickle.loads((self.folder / f"{r}.result").read_bytes())

    def kill(self, ranks: Iterable[int] | None = None) -> bool:
        """Sends SIGKILL to some ranks, or all; whether one of them died of it."""
        victims = [self.processes[r] for r in ranks] if ranks is not None else self.processes
        for process in victims:
            process.kill()
        for process in victims:
            process.join()
        return any(process.exitcode == -signal.SIGKILL for process in victims)

    def signal(self, number: signal.Signals, ranks: Iterable[int]) -> None:
        """Sends a signal to those of the ranks that are alive."""
        for r in ranks:
            pid = self.processes[r].pid
            if self.processes[r].is_alive() and pid is not None:
                os.kill(pid, number)

    def output(self, r: int) -> str:
        """What a rank has written to stdout and stderr so far."""
        path = self.folder / f"{r}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def told(self, r: int) -> str:
        """A rank's status and the end of its output, for an error."""
        return f"--- rank {r}, status {self.statuses[r]}:\n{self.output(r)[-SHOWN:]}"

    def log(self) -> str:
        """The same for all ranks."""
        return "\n".join(self.told(r) for r in range(len(self.processes)))


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start_server() -> None:
    """Starts the fork server unless it runs, with the environment that its imports need."""
    known = {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # as the command does before it imports torch
        "DS_ACCELERATOR": mesh.device().type,  # otherwise DeepSpeed detects one, and prints so
    }
    with mock.patch.dict(os.environ, known):
        forkserver.ensure_running()


def _main(rank: int, env: dict[str, str], folder: Path, work: bytes) -> None:
    """One rank's process. An exception ends it with status 1 and a traceback in its log."""
    log = os.open(folder / f"{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    assert os.getpid() != IMPORTED_BY, "the fork server was to import all that ranks need"
    faulthandler.enable()
    os.environ.clear()
    os.environ |= env | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    tempfile.tempdir = None  # do not keep the server's
    # the server's state, if kept, would hide draws that nobody has seeded
    for seed in (random.seed, np.random.seed, torch.seed):
        seed()
    function, args = pickle.loads(work)
    returned = function(*args)
    mesh.shutdown()
    (folder / f"{rank}.result").write_bytes(pickle.dumps(returned))
    sys.stdout.flush()
