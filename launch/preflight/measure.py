"""Ranks measure themselves together, while a thread of each looks on: none hangs without a word.

The main thread may hang: it joins the others and computes with them. The thread of rank 0 waits for
what all have measured, and tells the outcome, also if some ranks do not come to an end: those that
are furthest behind are named. The others' threads wait for its word.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from launch.preflight import rendezvous, verdict
from launch.preflight.rates import Stage
from launch.preflight.report import Rates, Report
from launch.preflight.seat import Seat
from launch.preflight.verdict import Problem
from parallel import mesh
from pretrain.errors import UserError

MEASURE_S = 60.0  # seconds, see launch/preflight/__init__.py
GRACE_S = 3.0  # for other ranks' words once one has broken down, and for a main thread to end
NETWORK = (
    "see that hosts reach each other, and NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME; "
    "NCCL_DEBUG=INFO tells more"
)
# of the partners, and a function that is told which stage begins; the rates
Work = Callable[[Sequence[int], Stage], Rates]
Measured = tuple[list[Rates], list[Problem]]


def measure(seat: Seat, reports: Sequence[Report], partners: Sequence[int], work: Work) -> Measured:
    """Does the work with all ranks. On rank 0: all rates, and who is slow.

    Args:
        reports: rank 0's, of all ranks.
        partners: ranks that this one exchanges data with.
    Raises:
        PreflightError: on every rank.
    """
    watch = _Watch(seat, reports)
    watch.start()
    rank, done = seat.world.rank, 0

    def stage(what: str) -> None:
        nonlocal done
        done += 1
        seat.store.set(f"stage/{rank}", json.dumps([done, what]))

    try:
        own = work(partners, stage).encode()
    except RuntimeError as error:
        lost = mesh.is_of_another_rank(error)
        own = json.dumps({"broken": str(error).splitlines()[0], "by_another": lost})
        seat.store.set("broken", "")
    seat.store.set(f"rates/{rank}", own)
    return watch.outcome()


class _Watch(threading.Thread):
    """Ends this rank if the measuring does not."""

    def __init__(self, seat: Seat, reports: Sequence[Report]) -> None:
        super().__init__(name="preflight", daemon=True)
        # a wait keeps a connection to itself
        self._seat = replace(seat, store=seat.store.clone())  # type: ignore[attr-defined]
        self._reports = reports
        self._main_is_done = threading.Event()
        self._measured: Measured = [], []
        self._error: Exception | None = None

    def outcome(self) -> Measured:
        """For the main thread, when it has done its part."""
        self._main_is_done.set()
        self.join()
        if self._error is not None:
            raise self._error
        return self._measured

    def run(self) -> None:
        try:
            if self._seat.world.rank:
                seconds = MEASURE_S + 2 * mesh.STORE_TIMEOUT_S
                self._seat.hear(f"measured/{self._seat.world.rank}", seconds)
            else:
                self._measured = self._judge()
        except Exception as error:  # the main thread's to raise
            self._error = error
            if not self._main_is_done.wait(GRACE_S):
                print(f"hypnos: error: {error}", file=sys.stderr, flush=True)
                os._exit(error.status if isinstance(error, UserError) else 1)

    def _judge(self) -> Measured:
        """Rank 0 waits for all, and says how it went."""
        seat, store = self._seat, self._seat.store
        silent = self._wait()
        there = sorted(set(range(seat.world.size)) - set(silent))
        answers = [json.loads(each) for each in rendezvous.gather(store, "rates", there)]
        keys, hosts = seat.keys("measured"), [report.host for report in self._reports]
        broken = {r: each for r, each in zip(there, answers, strict=True) if "broken" in each}
        if broken:
            problems = self._broken(broken, hosts)
        elif silent:
            problems = self._behind(silent, hosts)
        else:
            measured = [Rates(**each) for each in answers]
            problems = verdict.of_rates(self._reports, measured)
        if error := verdict.error(problems, hosts):
            raise seat.failed(error, keys, problems)
        rendezvous.scatter(store, keys, ["{}"] * len(keys))
        return measured, problems

    def _wait(self) -> list[int]:
        """Until all have measured, or MEASURE_S are over; the ranks that have not."""
        store, keys = self._seat.store, self._seat.keys("rates")
        deadline, hurried = time.monotonic() + MEASURE_S, False
        while (left := deadline - time.monotonic()) > 0:
            try:
                store.wait(keys, timedelta(seconds=min(1.0, left)))
                return []
            except dist.DistStoreError:
                if not hurried and store.check(["broken"]):
                    deadline, hurried = time.monotonic() + GRACE_S, True
        return [rank for rank, key in enumerate(keys) if not store.check([key])]

    def _broken(self, broken: dict[int, Any], hosts: Sequence[str]) -> list[Problem]:
        """Ranks that have broken down; by themselves, if there are such."""
        first = {rank: each for rank, each in broken.items() if not each["by_another"]} or broken
        stages = rendezvous.gather(self._seat.store, "stage", first)
        found = list[Problem]()
        for (rank, each), stage in zip(first.items(), stages, strict=True):
            what = f"{json.loads(stage)[1]}, and breaks down: {each['broken']}"
            found += verdict.of_ranks([rank], hosts, what, NETWORK)
        return verdict.by_host(found)

    def _behind(self, silent: Sequence[int], hosts: Sequence[str]) -> list[Problem]:
        """Of the ranks that come to no end, those that are furthest behind."""
        stages = map(json.loads, rendezvous.gather(self._seat.store, "stage", silent))
        done = dict(zip(silent, stages, strict=True))
        least, what = min(done.values())
        last = [rank for rank in silent if done[rank][0] == least]
        return verdict.of_ranks(last, hosts, f"{what} for {MEASURE_S:g} s already", NETWORK)
