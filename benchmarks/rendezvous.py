"""Simulates the start of thousands of ranks on one machine: its time, and the messages per rank.

    python -m benchmarks.rendezvous --ranks 4096

The store is real, over TCP, and so are all messages to it: the preflight's code runs in one thread
per rank, in several processes, without the ranks' computations. Then rank 0 of a fake process group
of that size builds Megatron's grid, and as many gloo ranks as fit connect; their messages are
counted in the same way.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch.distributed as dist

from benchmarks.command import described
from launch.preflight import rendezvous, report
from launch.preflight.report import Rates, Report
from launch.preflight.seat import Seat
from launch.preflight.survey import exchange
from launch.quiet import quiet
from launch.world import World
from parallel import mesh, talk
from pretrain.run.facts import Facts, facts

PER_PROCESS = 512
CONNECTIONS = 1  # of each rank to the store, until it trains
PATIENCE_S = 300.0
# thousands of threads in few processes wait for the interpreter, and each polls for it this often
SWITCH_S = 0.5
# torch looks up the name of each peer; a name server may drop some of so many requests
RESOLVER = "timeout:1 attempts:1"


class Counted(dist.Store):
    """A store that counts the messages to it, and their bytes, both ways."""

    def __init__(self, store: Any, counts: Counter[str] | None = None) -> None:
        super().__init__()
        self._store, self.counts = store, Counter[str]() if counts is None else counts

    def _count(self, *values: bytes | str) -> None:
        self.counts["messages"] += 1
        self.counts["bytes"] += sum(map(len, values))

    def clone(self) -> Counted:
        self.counts["connections"] += 1
        return Counted(self._store.clone(), self.counts)

    def set(self, key: str, value: Any) -> None:
        self._count(key, value)
        self._store.set(key, value)

    def get(self, key: str) -> Any:
        value = self._store.get(key)
        self._count(key, value)
        return value

    def add(self, key: str, value: int) -> int:
        self._count(key, "12345678")
        return int(self._store.add(key, value))

    def wait(self, keys: Sequence[str], timeout: timedelta = talk.NO_TIMEOUT) -> None:
        self._count(*keys)
        self._store.wait(keys, timeout)

    def check(self, keys: Sequence[str]) -> bool:
        self._count(*keys)
        return bool(self._store.check(keys))

    def multi_get(self, keys: Sequence[str]) -> Any:
        values = self._store.multi_get(keys)
        self._count(*keys, *values)
        return values

    def multi_set(self, keys: Sequence[str], values: Sequence[str]) -> None:
        self._count(*keys, *values)
        self._store.multi_set(keys, values)


class Result(NamedTuple):
    """What a simulated start took."""

    seconds: float  # until rank 0 lets all ranks begin
    processor_seconds: float  # of all processes
    first: Counter[str]  # rank 0's messages, bytes, further connections
    others: Counter[str]  # the maximum over the other ranks


def preflight(ranks: int, per_process: int = PER_PROCESS) -> Result:
    """All ranks connect to rank 0's store and do a preflight that measures nothing."""
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, RES_OPTIONS=RESOLVER),
    ):
        port, begin, used = _free_port(), time.monotonic(), _processor_seconds()
        blocks = [range(b, min(b + per_process, ranks)) for b in range(0, ranks, per_process)]
        mine, looks = facts(None), report.look(None, Path(folder))  # of all: it is one machine
        context = multiprocessing.get_context("fork")
        counts: Any = context.SimpleQueue()
        helpers = [
            context.Process(
                target=_block, args=(block, ranks, port, Path(folder), mine, looks, counts)
            )
            for block in blocks[1:]
        ]
        for helper in helpers:
            helper.start()
        kept = _block(blocks[0], ranks, port, Path(folder), mine, looks, counts)
        seconds = time.monotonic() - begin
        found = [each for _ in blocks for each in counts.get()]
        for helper in helpers:
            helper.join()
        del kept
        used = _processor_seconds() - used
    assert len(found) == ranks, "a rank has not come to the end"
    first = next(each for each in found if each["rank"] == 0)
    others = Counter[str]()
    for each in found:
        if each["rank"]:
            others |= each
    return Result(seconds, used, first, others)


def _block(
    block: range, ranks: int, port: int, folder: Path, mine: Facts, looks: Report, counts: Any
) -> list[Counted]:
    """Runs some of the ranks in this process; returns their stores."""
    stores, found = list[Counted](), list[Counter[str]]()

    def run(rank: int) -> None:
        world = World("torchrun", rank, ranks, rank % 8, "127.0.0.1", port)
        store = Counted(rendezvous.connect(world, PATIENCE_S, _nothing))
        stores.append(store)
        seat = Seat(world, folder / "run", store, _nothing)
        exchange(seat, mine, PATIENCE_S, _no_work)
        found.append(store.counts | Counter(rank=rank))

    with (
        mock.patch.object(rendezvous, "CONNECTIONS", CONNECTIONS),  # a real run's ranks have more
        mock.patch.object(report, "look", lambda world, _: replace(looks, rank=world.rank)),
        mock.patch.object(threading, "excepthook", _give_up),
    ):
        _in_threads([partial(run, rank) for rank in block])
    counts.put(found)
    return stores


def _processor_seconds() -> float:
    """CPU time of this process, and of those that it has waited for."""
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def _in_threads(functions: Sequence[Callable[[], None]]) -> None:
    """Calls all of them at once."""
    before, interval = threading.stack_size(256 * 1024), sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    threading.stack_size(before)
    sys.setswitchinterval(interval)


def _give_up(failed: threading.ExceptHookArgs) -> None:
    """Ends a process if one of its ranks has failed."""
    print(f"benchmarks.rendezvous: {failed.exc_value!r}", file=sys.stderr, flush=True)
    os._exit(1)


def _nothing(_: str) -> None:
    """Discards a message."""


def _no_work(partners: Sequence[int], stage: Callable[[str], None]) -> Rates:
    """Reports the same stages as a real measurement."""
    for what in ("joins", "multiplies", "sums", *(f"exchanges with {each}" for each in partners)):
        stage(what)
    return Rates(1.0, 1.0, 1.0)


def gloo(ranks: int, *, lazy: bool) -> tuple[Counter[str], int]:
    """The most messages of any rank while gloo's group is set up, and its connections to others."""
    os.environ["TORCH_GLOO_LAZY_INIT"] = "1" if lazy else "0"
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    stores = [Counted(dist.TCPStore("127.0.0.1", server.port)) for _ in range(ranks)]
    groups, files = list[Any](), len(os.listdir("/proc/self/fd"))

    def join(rank: int) -> None:
        limit = timedelta(seconds=PATIENCE_S)
        groups.append(dist.ProcessGroupGloo(stores[rank], rank, ranks, limit))

    _in_threads([partial(join, rank) for rank in range(ranks)])
    most = Counter[str]()
    for store in stores:
        most |= store.counts
    return most, (len(os.listdir("/proc/self/fd")) - files) // ranks


def grid(ranks: int, tp: int, pp: int) -> tuple[float, Counter[str]]:
    """Seconds one rank takes to lay Megatron's grid over `ranks` ranks, and its messages.

    The groups are fake; the cost of real ones is `gloo`, or NCCL's at its first use.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: F401 (registers it)

    store = Counted(dist.HashStore())
    dist.init_process_group("fake", store=store, rank=0, world_size=ranks)
    begin = time.monotonic()
    mesh.initialize(tp, pp)
    seconds = time.monotonic() - begin
    mesh.shutdown()
    return seconds, store.counts


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Measures, and prints a table."""
    parser = described(__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64, 512, 4096])
    args = parser.parse_args()
    quiet()
    print(
        "preflight   ranks  seconds    CPU seconds  messages and kB of rank 0  of another, at most"
    )
    for ranks in args.ranks:
        seconds, used, first, others = preflight(ranks)
        print(
            f"{ranks:17,} {seconds:8.1f} {used:14.1f}"
            f" {first['messages']:9,} {first['bytes'] / 1e3:10,.1f}"
            f"         {others['messages']:9,} {others['bytes'] / 1e3:10,.1f}",
            flush=True,
        )
    print("grid        ranks  seconds  messages of a rank (tp 8, pp 8)")
    for ranks in (each for each in args.ranks if each % 64 == 0):
        seconds, counts = grid(ranks, 8, 8)
        print(f"{ranks:17,} {seconds:8.1f} {counts['messages']:9,}", flush=True)
    print("gloo        ranks  messages of a rank   connections of a rank   made")
    for lazy, most in ((False, 64), (True, 512)):
        for ranks in (each for each in args.ranks if each <= most):
            counts, connections = gloo(ranks, lazy=lazy)
            when = "as they are used" if lazy else "all at once"
            print(f"{ranks:17,} {counts['messages']:20,} {connections:23,}   {when}", flush=True)
    os._exit(0)  # an orderly exit would wait for groups that were never connected


if __name__ == "__main__":
    main()
