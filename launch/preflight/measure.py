"""Measures all ranks together, with a watching thread on each, so that a hang is always reported.

The main thread joins the others and computes with them, so it may hang. Rank 0's thread waits for
all results and announces the outcome, even if some ranks never finish: then those furthest behind
are named. The other ranks' threads wait for its verdict; if their main thread takes long, they do
so over a connection of their own, and report its progress.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from launch.preflight import rendezvous, verdict
from launch.preflight.rates import Stage
from launch.preflight.report import Rates, Report
from launch.preflight.seat import Seat
from launch.preflight.verdict import Problem
from parallel import talk
from pretrain.errors import UserError

MEASURE_S = 60.0  # seconds, see launch/preflight/__init__.py
LONG_S = 5.0  # after which a rank's thread reports progress, and no longer relies on the main one
GRACE_S = 3.0  # for other ranks' reports after a failure, and for a main thread to end
NETWORK = (
    "check that hosts reach each other, and NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME; "
    "NCCL_DEBUG=INFO shows more"
)
MEASURED = "measured"  # the key of rank 0's verdict
# (partners, function to call when a stage begins) -> the rates
Work = Callable[[Sequence[int], Stage], Rates]
Measured = tuple[list[Rates], list[Problem]]


def measure(seat: Seat, reports: Sequence[Report], partners: Sequence[int], work: Work) -> Measured:
    """Does the work with all ranks. Returns, on rank 0, all rates and the slow ranks.

    Args:
        reports: of all ranks, on rank 0.
        partners: ranks that this one exchanges data with.
    Raises:
        PreflightError: on every rank.
    """
    watch = _Watch(seat, reports)
    watch.start()
    try:
        own = work(partners, watch.stage_begins).encode()
    except RuntimeError as error:
        lost = talk.is_of_another_rank(error)
        broken = {"broken": str(error).splitlines()[0], "while": watch.stage[1]}
        own = json.dumps({**broken, "by_another": lost})
        seat.store.set("broken", "")
    seat.store.set(f"rates/{seat.world.rank}", own)
    return watch.outcome()


class _Watch(threading.Thread):
    """The thread that ends this rank if the measurement hangs."""

    def __init__(self, seat: Seat, reports: Sequence[Report]) -> None:
        super().__init__(name="preflight", daemon=True)
        self.stage = 0, "starting"  # of the main thread: its number, and what it is
        self._seat, self._reports = seat, reports
        self._main_is_done = threading.Event()
        self._measured: Measured = [], []
        self._error: Exception | None = None

    def stage_begins(self, what: str) -> None:
        """Called by the main thread when a stage begins."""
        self.stage = self.stage[0] + 1, what

    def outcome(self) -> Measured:
        """Called by the main thread when it has finished: waits for the verdict."""
        self._main_is_done.set()
        self.join()
        if self._error is not None:
            raise self._error
        return self._measured

    def run(self) -> None:
        try:
            if self._seat.world.rank == 0:
                self._measured = self._judge(self._beside_main())
            elif self._main_is_done.wait(LONG_S):  # the usual case: no second connection
                self._hear(self._seat)
            else:
                self._hear(self._beside_main())
        except Exception as error:  # raised in the main thread
            self._error = error
            if not self._main_is_done.wait(GRACE_S):
                print(f"hypnos: error: {error}", file=sys.stderr, flush=True)
                os._exit(error.status if isinstance(error, UserError) else 1)

    def _beside_main(self) -> Seat:
        """The seat with a connection of its own, since a wait blocks its connection."""
        return replace(self._seat, store=self._seat.store.clone())  # type: ignore[attr-defined]

    def _hear(self, seat: Seat) -> None:
        """Waits for rank 0's verdict, and reports this rank's progress until then."""
        deadline = time.monotonic() + MEASURE_S + 2 * talk.STORE_TIMEOUT_S
        with suppress(dist.DistNetworkError):  # rank 0 has gone; `hear` will report that
            while not self._main_is_done.is_set() and time.monotonic() < deadline:
                seat.store.set(f"stage/{seat.world.rank}", json.dumps(self.stage))
                with suppress(dist.DistStoreError):
                    seat.store.wait([MEASURED], timedelta(seconds=1))
                    break
        seat.hear(MEASURED, max(1.0, deadline - time.monotonic()))

    def _judge(self, seat: Seat) -> Measured:
        """Rank 0 waits for all ranks, and announces the verdict."""
        store, hosts = seat.store, [report.host for report in self._reports]
        silent = self._wait(seat)
        there = sorted(set(range(seat.world.size)) - set(silent))
        answers = [json.loads(each) for each in rendezvous.gather(store, "rates", there)]
        broken = {r: each for r, each in zip(there, answers, strict=True) if "broken" in each}
        deaf = list[int]()
        if broken:
            problems = _broken(broken, hosts)
        elif silent:
            deaf = [rank for rank in silent if rank and not store.check([f"stage/{rank}"])]
            problems = self._behind(seat, silent, deaf, hosts)
        else:
            measured = [Rates(**each) for each in answers]
            problems = verdict.of_rates(self._reports, measured)
        if error := verdict.error(problems, hosts):
            raise seat.failed(error, [MEASURED], problems, deaf)
        store.set(MEASURED, "{}")
        return measured, problems

    def _wait(self, seat: Seat) -> list[int]:
        """Waits until all have measured, at most MEASURE_S; returns the ranks that have not."""
        store, keys = seat.store, seat.keys("rates")
        deadline, hurried = time.monotonic() + MEASURE_S, False
        while (left := deadline - time.monotonic()) > 0:
            try:
                store.wait(keys, timedelta(seconds=min(1.0, left)))
                return []
            except dist.DistStoreError:
                if not hurried and store.check(["broken"]):
                    deadline, hurried = time.monotonic() + GRACE_S, True
        return [rank for rank, key in enumerate(keys) if not store.check([key])]

    def _behind(
        self, seat: Seat, silent: Sequence[int], deaf: Sequence[int], hosts: Sequence[str]
    ) -> list[Problem]:
        """Of the ranks that do not finish, those that are furthest behind.

        Args:
            deaf: those whose threads do not even report progress.
        """
        if deaf:
            what = f"has reported no progress for {MEASURE_S:g} s"
            return verdict.of_ranks(deaf, hosts, what, "its process is stopped, or its host hangs")
        if 0 in silent:
            seat.store.set("stage/0", json.dumps(self.stage))
        stages = map(json.loads, rendezvous.gather(seat.store, "stage", silent))
        done = dict(zip(silent, stages, strict=True))
        least, what = min(done.values())
        last = [rank for rank in silent if done[rank][0] == least]
        return verdict.of_ranks(last, hosts, f"is still {what} after {MEASURE_S:g} s", NETWORK)


def _broken(broken: dict[int, Any], hosts: Sequence[str]) -> list[Problem]:
    """Ranks that have failed; if some have failed by themselves, only those."""
    first = {rank: each for rank, each in broken.items() if not each["by_another"]} or broken
    found = list[Problem]()
    for rank, each in first.items():
        what = f"failed while {each['while']}: {each['broken']}"
        found += verdict.of_ranks([rank], hosts, what, NETWORK)
    return verdict.by_host(found)
