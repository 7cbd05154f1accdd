"""The order of a preflight, on every rank: all join, report and measure; rank 0 judges."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch.distributed as dist

from launch.doctor import Finding
from launch.preflight import folder, rates, rendezvous, report, verdict
from launch.preflight.folder import Meeting
from launch.preflight.measure import Work, measure
from launch.preflight.rates import Stage
from launch.preflight.rendezvous import Say
from launch.preflight.report import Rates, Report
from launch.preflight.seat import FILE, Seat
from launch.preflight.verdict import PreflightError, Problem
from launch.world import World, this_host
from parallel import mesh, talk
from pretrain.config.schema import Config
from pretrain.run.facts import Facts, facts

JOIN_S, REPORT_S = 300.0, 60.0  # seconds, see launch/preflight/__init__.py


@dataclass(frozen=True)
class Survey:
    """The findings of a passed preflight, on rank 0."""

    reports: list[Report]  # of all ranks, by rank
    rates: list[Rates]  # likewise; empty for a single rank
    problems: list[Problem]  # only those that do not end the job
    seconds: float  # since all ranks have joined

    def lines(self) -> Iterator[str]:
        """The lines to print before the run starts."""
        yield from (f"preflight: {problem.state}: {problem}" for problem in self.problems)
        if self.rates:
            hosts = len({each.host for each in self.reports})
            matmul = median(each.matmul for each in self.rates) / 1e12
            all_reduce = self.rates[0].all_reduce / 1e9
            yield (
                f"preflight: {len(self.reports)} ranks on {hosts} host{'s' * (hosts > 1)}, "
                f"{self.seconds:.1f} s; matmul {matmul:.3g} TFLOP/s a rank, "
                f"all-reduce {all_reduce:.3g} GB/s"
            )


def check(config: Config | None, world: World | None, say: Say) -> Survey | None:
    """Compares and measures the ranks; afterwards they are a group, as after `mesh.join`.

    Args:
        config: of the run; None: only the machines are checked.
        say: prints one line for the user.
    Returns:
        On rank 0, the findings.
    Raises:
        PreflightError: on every rank, with the first problem that ends the job.
        UserError: rank 0 cannot be reached, or cannot listen.
    """
    run = Path(config.run.dir) / config.run.name if config else Path.cwd()
    if world is None or world.size == 1:
        return _alone(run, world)
    if world.local_rank:  # one message per host is enough
        say = _mute
    limit = config.parallel.timeout if config else mesh.TIMEOUT
    common = rendezvous.connect(world, min(JOIN_S, limit), say)
    seat = Seat(world, run, dist.PrefixStore("preflight", common), say)

    def work(partners: Sequence[int], stage: Stage) -> Rates:
        stage("joining the process group")
        mesh.join(limit, store=common)
        return rates.measure(partners, stage)

    return exchange(seat, facts(config), min(JOIN_S, limit), work)


def exchange(seat: Seat, mine: Facts, timeout: float, work: Work) -> Survey | None:
    """All communication of the preflight, once ranks have reached the store; see `check`.

    Args:
        mine: this rank's version of what must be the same on all ranks.
        timeout: seconds to wait for ranks.
        work: what is measured.
    """
    start, ahead = _join(seat, report.digest(mine), timeout)
    begin = time.monotonic()
    reports, problems, partners = _report(seat, start, mine, ahead)
    measured, slow = measure(seat, reports, partners, work)
    if seat.world.rank:
        return None
    _forget_failure(seat.run)
    return Survey(reports, measured, [*problems, *slow], time.monotonic() - begin)


def _mute(line: str) -> None:
    """Prints nothing."""


def _alone(run: Path, world: World | None) -> Survey:
    """The survey of a single rank: what it finds wrong by itself."""
    mine = report.look(world, run)
    problems = verdict.of_reports([mine], unseen=())
    if error := verdict.error(problems, [mine.host]):
        raise error
    _forget_failure(run)
    return Survey([mine], [], problems, 0.0)


def _forget_failure(run: Path) -> None:
    """Removes the record of an earlier failed preflight, since this one has passed."""
    if (run / FILE).is_file():
        (run / FILE).unlink()


def _join(seat: Seat, digest: str, timeout: float) -> tuple[dict[str, Any], float]:
    """Waits until all ranks have joined. Returns what rank 0 then tells all at once, and by how
    many seconds this rank's clock is ahead of rank 0's.
    """
    world, store = seat.world, seat.store
    store.set(f"here/{world.rank}", this_host())
    if world.rank:
        told = seat.hear("start", timeout + talk.STORE_TIMEOUT_S)
        return told, time.time() - told["clock"]
    if missing := rendezvous.wait_for_all(store, "here", world.size, timeout, seat.say):
        there = set(range(world.size)) - set(missing)
        came = [name.decode() for name in rendezvous.gather(store, "here", there)]
        absent = rendezvous.absent_hosts(came)
        line = rendezvous.never_came(missing, absent, world.size, timeout)
        bad = verdict.minority(absent, [*came, *absent])
        raise seat.failed(PreflightError(f"preflight: {line}", bad), ["start"], deaf=missing)
    try:
        meeting = folder.begin(seat.run, secrets.token_hex(4))
    except OSError as cause:
        line = f"{seat.run}: cannot be written: {cause.strerror}; set run.dir to another folder"
        error = PreflightError(f"preflight: {line}")
        raise seat.failed(error, ["start"], can_write=False) from None
    told = {"levels": meeting.levels, "name": meeting.name, "digest": digest, "clock": time.time()}
    store.set("start", json.dumps(told))
    return told, 0.0


def _report(
    seat: Seat, start: dict[str, Any], mine: Facts, ahead: float
) -> tuple[list[Report], list[Problem], Sequence[int]]:
    """Every rank reports.

    Returns:
        On rank 0, all reports and the problems that do not end the job; on every rank, the ranks
        that it will exchange data with.
    """
    world, store = seat.world, seat.store
    meeting = Meeting(start["levels"], start["name"])
    unable = folder.leave_token(meeting, seat.run, world.rank)
    own = report.look(world, seat.run)
    if unable:
        own.found.insert(0, Finding("fail", "run folder", unable, verdict.SHARE))
    shown = world.rank == 0 or report.digest(mine) != start["digest"]
    own = replace(own, ahead=ahead, digest=report.digest(mine), facts=mine if shown else None)
    store.set(f"report/{world.rank}", own.encode())
    if world.rank:
        told = seat.hear(f"reported/{world.rank}", REPORT_S + 2 * talk.STORE_TIMEOUT_S)
        return [], [], told["partners"]

    hosts = [name.decode() for name in rendezvous.gather(store, "here", range(world.size))]
    keys = seat.keys("reported")
    try:
        silent = rendezvous.wait_for_all(store, "report", world.size, REPORT_S, seat.say, hosts)
        if silent:
            what = f"connected, but has not reported in {REPORT_S:g} s"
            problems = verdict.of_ranks(silent, hosts, what, "check its log and its disks")
        else:
            encoded = rendezvous.gather(store, "report", range(world.size))
            reports = [Report.decode(each) for each in encoded]
            unseen = folder.missing_tokens(meeting, seat.run, range(world.size))
            problems = verdict.of_reports(reports, unseen)
    finally:
        folder.end(meeting, seat.run)
    if error := verdict.error(problems, hosts):
        raise seat.failed(error, keys, problems, deaf=silent)
    partners = rates.choose_partners(hosts)
    rendezvous.scatter(store, keys, [json.dumps({"partners": each}) for each in partners])
    return reports, problems, partners[0]
