"""Rank 0's verdict on all reports: problems by rank and host, and which hosts are to blame.

fail    ranks that differ in code, versions, settings or data; a different run folder; no GPU of
        their own; a GPU below TOO_SLOW x the job's median
note    the run starts all the same: a clock that is off by more than MAX_CLOCK_S, a full disk,
        different drivers, hosts with more ranks than others, a GPU below SLOW x the median, a CPU
        (whose cores ranks often share) below SLOW_CPU x
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from launch.doctor import GIB
from launch.preflight.report import Rates, Report
from pretrain.errors import UserError, shortened
from pretrain.exit_status import UNFIT
from pretrain.run.facts import difference

MAX_CLOCK_S = 5.0
MIN_DISK = 5 * GIB
SLOW, TOO_SLOW, SLOW_CPU = 0.8, 0.5, 0.33  # of the job's median
SHARE = "set run.dir to a path on a file system that all hosts share"


class PreflightError(UserError):
    """Raised on every rank. `bad_hosts`: the job may run without them."""

    def __init__(self, message: str, bad_hosts: Sequence[str] = ()) -> None:
        super().__init__(message, UNFIT if bad_hosts else None)
        self.bad_hosts = list(bad_hosts)


@dataclass(frozen=True)
class Problem:
    """A problem of some ranks of one host, and the fix; of the whole job, if no rank is named."""

    state: str  # "fail" or "note"
    host: str
    ranks: tuple[int, ...]
    what: str
    fix: str = ""

    def __str__(self) -> str:
        where = f"{named(self.ranks)} on {self.host}: " if self.ranks else ""
        return f"{where}{self.what}{'; ' if self.fix else ''}{self.fix}"


def named(ranks: Collection[int], most: int = 8) -> str:
    """Ranks in words: "rank 3", "ranks 0, 4-7"; at most so many ranges."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    words = [str(a) if a == b else f"{a}-{b}" for a, b in runs[:most]]
    rest = sum(b - a + 1 for a, b in runs[most:])
    more = f" and {rest} more" if rest else ""
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(words)}{more}"


def of_reports(reports: Sequence[Report], unseen: Collection[int]) -> list[Problem]:
    """Problems that the ranks' reports show.

    Args:
        reports: of all ranks, by rank.
        unseen: ranks whose tokens rank 0 does not see in the run's folder.
    """
    found = [
        Problem(each.state, report.host, (report.rank,), each.found, each.fix)
        for report in reports
        for each in report.found
    ]
    told = {problem.ranks[0] for problem in found}
    found += [
        Problem("fail", reports[rank].host, (rank,), "rank 0 does not see its files", SHARE)
        for rank in unseen
        if rank not in told
    ]
    for look in (_facts, _shared_gpus, _clocks, _disks, _drivers, _numbers):
        found += look(reports)
    return by_host(found)


def of_ranks(ranks: Iterable[int], hosts: Sequence[str], what: str, fix: str) -> list[Problem]:
    """The same failure of some ranks, by host. hosts: of all ranks."""
    return by_host(Problem("fail", hosts[rank], (rank,), what, fix) for rank in ranks)


def of_rates(reports: Sequence[Report], rates: Sequence[Rates]) -> list[Problem]:
    """Ranks that are slow relative to the job's median."""
    found = []
    for what, unit, values in (
        ("multiplies matrices at", "TFLOP/s", [rate.matmul / 1e12 for rate in rates]),
        ("exchanges data at", "GB/s", [rate.exchange and rate.exchange / 1e9 for rate in rates]),
    ):
        usual = median(value for value in values if value is not None)
        for report, value in zip(reports, values, strict=True):
            share = 1.0 if value is None else value / usual
            if share < (SLOW if report.gpu else SLOW_CPU):
                line = f"{what} {value:.3g} {unit}, but the job's median is {usual:.3g}"
                fix = "check what else runs there, and its clocks, links and temperature"
                state = "fail" if report.gpu and share < TOO_SLOW else "note"
                found.append(Problem(state, report.host, (report.rank,), line, fix))
    return found


def error(problems: Iterable[Problem], hosts: Collection[str]) -> PreflightError | None:
    """The error that ends the job; None: it may go on. hosts: all hosts."""
    failed = [problem for problem in problems if problem.state == "fail"]
    if not failed:
        return None
    bad = minority({problem.host for problem in failed if problem.ranks}, hosts)
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    return PreflightError(f"preflight: {failed[0]}{more}", bad)


def minority(bad: Collection[str], hosts: Collection[str]) -> list[str]:
    """Hosts that are to blame; none if more than half are bad: then the job itself is at fault."""
    return sorted(bad) if 2 * len(set(bad)) <= len(set(hosts)) else []


def _facts(reports: Sequence[Report]) -> Iterator[Problem]:
    """Ranks whose facts differ from the majority's, or from rank 0's if there is no majority."""
    counts = Counter(report.digest for report in reports)
    first = reports[0]
    usual = max(counts, key=lambda digest: (counts[digest], digest == first.digest))
    like = next(report for report in reports if report.digest == usual)
    facts = {report.digest: report.facts for report in reports if report.facts is not None}
    for report in reports:
        if report.digest != usual:
            there, here = (f"rank {each.rank} on {each.host}" for each in (like, report))
            line = difference(there, facts[usual], here, facts[report.digest])
            what, _, fix = line.partition("; ")
            yield Problem("fail", report.host, (report.rank,), what, fix)


def _shared_gpus(reports: Sequence[Report]) -> Iterator[Problem]:
    users = defaultdict[tuple[str, str], list[Report]](list)
    for report in reports:
        if report.gpu:
            users[report.host, report.gpu].append(report)
    fix = "give each rank its own LOCAL_RANK, or start one rank per GPU"
    for (host, _), ranks in users.items():
        if len(ranks) > 1:
            numbers = tuple(report.rank for report in ranks)
            yield Problem("fail", host, numbers, "share one GPU", fix)


def _clocks(reports: Sequence[Report]) -> Iterator[Problem]:
    usual = median(report.ahead for report in reports)
    for report in reports:
        off = report.ahead - usual
        if abs(off) > MAX_CLOCK_S:
            what = f"the clock is {abs(off):.0f} s {'ahead' if off > 0 else 'behind'}"
            fix = "synchronise it (`timedatectl set-ntp true`)"
            yield Problem("note", report.host, (report.rank,), what, fix)


def _disks(reports: Sequence[Report]) -> Iterator[Problem]:
    for report in reports:
        if report.disk_free < MIN_DISK:
            what = f"{report.disk_free / GIB:.1f} GiB free where the run's folder is"
            fix = "free some space, or set run.dir to another disk"
            yield Problem("note", report.host, (report.rank,), what, fix)


def _drivers(reports: Sequence[Report]) -> Iterator[Problem]:
    usual = Counter(report.driver for report in reports).most_common(1)[0][0]
    for report in reports:
        if report.driver != usual:
            what = f"the driver is {report.driver or 'none'}, but {usual or 'none'} on most ranks"
            fix = "install the same everywhere"
            yield Problem("note", report.host, (report.rank,), what, fix)


def _numbers(reports: Sequence[Report]) -> Iterator[Problem]:
    """Hosts with more or fewer ranks than others, and GPUs that no rank uses."""
    ranks = defaultdict[str, list[Report]](list)
    for report in reports:
        ranks[report.host].append(report)
    usual = Counter(len(here) for here in ranks.values()).most_common(1)[0][0]
    for host, here in ranks.items():
        numbers = tuple(report.rank for report in here)
        if len(here) != usual:
            what = f"{len(here)} ranks, but {usual} on most hosts"
            fix = f"start the same number everywhere (--ntasks-per-node={usual})"
            yield Problem("note", host, numbers, what, fix)
        gpus = max(report.gpus for report in here)
        if gpus > len(here):
            what = f"{len(here)} of {gpus} GPUs are used"
            fix = f"start {gpus} ranks per host (--ntasks-per-node={gpus}, --nproc-per-node={gpus})"
            yield Problem("note", host, numbers, what, fix)


def by_host(problems: Iterable[Problem]) -> list[Problem]:
    """Merges problems of one host that differ only in the rank; failures first."""
    ranks = defaultdict[tuple[str, str, str, str], list[int]](list)
    for each in problems:
        alike = each.what
        for rank in each.ranks:
            alike = alike.replace(f"rank {rank} on ", "")
        ranks[each.state, each.host, alike, each.fix] += each.ranks
    found = [
        Problem(state, host, tuple(sorted(numbers)), shortened(what, 500), fix)
        for (state, host, what, fix), numbers in ranks.items()
    ]
    return sorted(found, key=lambda problem: (problem.state, problem.ranks))
