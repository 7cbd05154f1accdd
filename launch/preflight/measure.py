"""Ranks measure themselves together, while a thread of each looks on: none hangs without a word.

The main thread may hang: it joins the others and computes with them. The thread of rank 0 waits for
what all have measured, and tells the outcome, also if some ranks do not come to an end: those that
are furthest behind are named. The others' threads wait for its word; where the main thread takes
long, over a further connection to the store, and they say how far it is.
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
LONG_S = 5.0  # after which a rank says how far it is, and hears although its main thread hangs
GRACE_S = 3.0  # for other ranks' words once one has broken down, and for a main thread to end
NETWORK = (
    "check that hosts reach each other, and NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME; "
    "NCCL_DEBUG=INFO shows more"
)
MEASURED = "measured"  # the key of rank 0's word
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
    """Ends this rank if the measuring does not."""

    def __init__(self, seat: Seat, reports: Sequence[Report]) -> None:
        super().__init__(name="preflight", daemon=True)
        self.stage = 0, "begins"  # of the main thread: how many there were, and what it is
        self._seat, self._reports = seat, reports
        self._main_is_done = threading.Event()
        self._measured: Measured = [], []
        self._error: Exception | None = None

    def stage_begins(self, what: str) -> None:
        """For the main thread."""
        self.stage = self.stage[0] + 1, what

    def outcome(self) -> Measured:
        """For the main thread, when it has done its part."""
        self._main_is_done.set()
        self.join()
        if self._error is not None:
            raise self._error
        return self._measured

    def run(self) -> None:
        try:
            if self._seat.world.rank == 0:
                self._measured = self._judge(self._beside_main())
            elif self._main_is_done.wait(LONG_S):  # the usual case: no connection beside its own
                self._hear(self._seat)
            else:
                self._hear(self._beside_main())
        except Exception as error:  # the main thread's to raise
            self._error = error
            if not self._main_is_done.wait(GRACE_S):
                print(f"hypnos: error: {error}", file=sys.stderr, flush=True)
                os._exit(error.status if isinstance(error, UserError) else 1)

    def _beside_main(self) -> Seat:
        """With a connection of its own, which a wait keeps to itself."""
        return replace(self._seat, store=self._seat.store.clone())  # type: ignore[attr-defined]

    def _hear(self, seat: Seat) -> None:
        """Waits for rank 0's word, and until then says how far this rank is."""
        deadline = time.monotonic() + MEASURE_S + 2 * talk.STORE_TIMEOUT_S
        with suppress(dist.DistNetworkError):  # rank 0 has gone, which `hear` says
            while not self._main_is_done.is_set() and time.monotonic() < deadline:
                seat.store.set(f"stage/{seat.world.rank}", json.dumps(self.stage))
                with suppress(dist.DistStoreError):
                    seat.store.wait([MEASURED], timedelta(seconds=1))
                    break
        seat.hear(MEASURED, max(1.0, deadline - time.monotonic()))

    def _judge(self, seat: Seat) -> Measured:
        """Rank 0 waits for all, and says how it went."""
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
        """Until all have measured, or MEASURE_S are over; the ranks that have not."""
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
        """Of the ranks that come to no end, those that are furthest behind.

        Args:
            deaf: those whose threads do not even say how far they are.
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
    """Ranks that have broken down; by themselves, if there are such."""
    first = {rank: each for rank, each in broken.items() if not each["by_another"]} or broken
    found = list[Problem]()
    for rank, each in first.items():
        what = f"failed while {each['while']}: {each['broken']}"
        found += verdict.of_ranks([rank], hosts, what, NETWORK)
    return verdict.by_host(found)
