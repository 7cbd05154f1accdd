"""Why a start ended and whether another follows, decided from the files that ranks leave."""

from __future__ import annotations

import errno
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from launch import starts
from launch.cli import main
from launch.outcome import Verdict, judge, why_ended
from launch.starts import RankEnd, Start

NODES = ("n0", "n1", "n2", "n3")


class Job:
    """A job with four nodes, two ranks on each, started again and again."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def start(self, *ends: tuple[int, int], saved: int | None = None, silent: str = "") -> Verdict:
        """One start, in which ranks end with these statuses, in this order; the others end with 76.

        Args:
            saved: the step of a checkpoint that this start saves.
            silent: a host whose ranks leave no exit record.
        """
        start = starts.begin(self.run, "slurm", "17", NODES, 8)
        logs = start.logs(self.run)
        if saved is not None:
            (self.run / f"checkpoints/step-{saved}").mkdir(parents=True)
        given = dict(ends)
        for rank in [*given, *(rank for rank in range(8) if rank not in given)]:
            host = NODES[rank // 2]
            starts.log_of(logs, rank).touch()
            if host != silent:
                RankEnd(rank, host, given.get(rank, 76), False, 0.0).write(logs)
        verdict = judge(
            self.run, start, starts.starts(self.run)[:-1], max(given.values(), default=1), 3
        )
        starts.finish(self.run, start, verdict.end)
        return verdict


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path / "run")


def test_time_is_up(job: Job) -> None:
    verdict = job.start(*((rank, 75) for rank in range(8)), saved=5)
    assert verdict.again and not verdict.end.exclude and verdict.end.status == 75


def test_time_is_up_before_any_rank_began(job: Job) -> None:
    start = starts.begin(job.run, "slurm", "1", ("n0", "n1"), 2)
    assert why_ended(job.run, start, 128 + 10).why == "the time limit was reached"
    end = why_ended(job.run, start, 128 + 9)
    assert (end.why, end.status) == ("no rank started (status 137 (SIGKILL))", 137)


def test_srun_has_ended_all_before_they_began(job: Job) -> None:
    """Because a host lacks the run's folder, and so leaves no record: it does not mean that the job
    was told to end.
    """
    start = starts.begin(job.run, "slurm", "1", ("n0", "n1"), 2)
    unrecorded = start  # an earlier start, whose end nobody has recorded
    verdict = judge(job.run, start, [unrecorded], 143, 3)
    assert verdict.again and verdict.end.why == "no rank started (status 143 (SIGTERM))"
    assert not judge(job.run, replace(start, launcher="mpi"), [], 143, 3).again


def test_ranks_that_were_told_to_stop(job: Job) -> None:
    start = starts.begin(job.run, "slurm", "1", ("n0", "n1"), 2)
    for rank in range(2):
        starts.log_of(start.logs(job.run), rank).touch()
        RankEnd(rank, f"n{rank}", 143, True, 0.0).write(start.logs(job.run))
    verdict = judge(job.run, start, [], 1, 3)
    assert not verdict.again and verdict.end.why == "stopped: status 143 (SIGTERM)"


def test_time_is_up_whatever_srun_says(job: Job) -> None:
    """srun ends others with SIGTERM once the first has ended, and returns the highest status."""
    start = starts.begin(job.run, "slurm", "17", NODES, 8)
    RankEnd(0, "n0", 75, False, 0.0).write(start.logs(job.run))
    assert judge(job.run, start, [], 143, 3).end.status == 75
    mpi = replace(start, launcher="mpi")
    assert judge(job.run, mpi, [], 143, 3).end.why == "stopped: status 143 (SIGTERM)"


@pytest.mark.parametrize("status", [0, 2, 143, 130])
def test_no_other_start(job: Job, status: int) -> None:
    """Nor is a host to blame, if someone starts the run again and it ends like that again."""
    for step in (5, 6):
        verdict = job.start(*((rank, status) for rank in range(8)), saved=step)
        assert not verdict.again and not verdict.end.exclude


def test_the_first_death_counts_and_the_second_there_excludes_its_host(job: Job) -> None:
    verdict = job.start((5, 137), (0, 1), saved=5)
    assert verdict.again and (verdict.end.rank, verdict.end.hosts) == (5, ("n2",))
    assert verdict.end.why == "rank 5 on n2 ended with status 137 (SIGKILL)"
    assert not verdict.end.exclude
    assert not job.start((0, 1), saved=6).end.exclude
    assert job.start((4, 1), saved=7).end.exclude == ("n2",)  # another rank, the same host
    assert job.start((0, 1), saved=8).end.exclude == ("n2", "n0")


def test_an_unfit_host_is_excluded_at_once(job: Job) -> None:
    verdict = job.start((3, 69), saved=5)
    assert verdict.again and verdict.end.exclude == ("n1",)


def test_storage_that_failed_may_be_well_at_the_next_start(job: Job) -> None:
    assert job.start((3, 74), saved=5).again
    verdict = job.start((3, 74), saved=6)
    assert verdict.again and verdict.end.exclude == ("n1",)  # twice there: it is the host


def test_whom_the_preflight_names_is_excluded_at_once(job: Job) -> None:
    job.run.mkdir()
    found = {"bad_hosts": ["n3"], "problems": ["rank 6 on n3: the clock is 9 s ahead; fix it"]}
    (job.run / "preflight.json").write_text(json.dumps(found))
    verdict = job.start(*((rank, 69) for rank in range(8)), saved=5)
    assert verdict.again and verdict.end.exclude == ("n3",)
    assert verdict.end.why == found["problems"][0]


def test_a_host_without_a_word_is_lost(job: Job) -> None:
    verdict = job.start(silent="n2", saved=5)
    assert verdict.again and verdict.end.exclude == ("n2",)
    assert verdict.end.why == "n2 lost: ranks 4, 5 left no exit record"


def test_a_host_that_slurm_has_lost_is_blamed_if_no_rank_left_word(job: Job) -> None:
    """The batch script died with the host, and Slurm killed the others before they could write."""
    start = starts.begin(job.run, "slurm", "1", ("n0", "n1"), 2)
    for rank in range(2):
        starts.log_of(start.logs(job.run), rank).touch()
    assert not why_ended(job.run, start, 1).lost
    end = judge(job.run, start, [], 1, 3, down=("n0",)).end
    assert (end.why, end.exclude) == ("n0 lost: rank 0 left no exit record", ("n0",))


def test_starts_are_bounded_by_progress_not_by_count(job: Job) -> None:
    for step in range(1, 10):
        assert job.start((step % 8, 1), saved=step).again
    assert job.start((0, 1)).again and job.start((1, 1)).again
    verdict = job.start((2, 1))
    assert not verdict.again
    assert (
        "3 starts in a row brought no new checkpoint (the newest is of step 9)" in verdict.why_not
    )


def test_the_command_that_decides(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    """It prints nodes, and returns 75 for another start and for nothing else."""
    for number in range(1, 4):
        start = starts.begin(job.run, "slurm", "17", NODES, 8)
        RankEnd(0, "n0", 75, False, 0.0).write(start.logs(job.run))
        status = main(["launch", "end", str(start.logs(job.run)), "--status", "75"])
        assert status == (75 if number < 3 else 1)
    assert "3 starts in a row brought no new checkpoint" in capsys.readouterr().err
    start = starts.begin(job.run, "slurm", "18", NODES, 8)
    RankEnd(2, "n1", 69, False, 0.0).write(start.logs(job.run))
    starts.log_of(start.logs(job.run), 2).write_text("its first line\nits last words\n")
    assert main(["launch", "end", str(start.logs(job.run)), "--status", "69"]) == 75
    said = capsys.readouterr()
    assert said.out == "n1\n"
    assert re.search(
        r"hypnos: start 4 of .*: rank 2 on n1 ended with status 69\n"
        r"the end of .*rank-2.log:\n  its first line\n  its last words\n$",
        said.err,
    )


def test_an_end_that_storage_does_not_take(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may work at the next start: this is not a user error, which would end the job."""

    def stale(_: int) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    start = starts.begin(job.run, "slurm", "17", NODES, 8)
    monkeypatch.setattr("os.fsync", stale)
    assert main(["launch", "end", str(start.logs(job.run)), "--status", "1"]) == 74


def test_another_job_begins_to_count_anew(job: Job) -> None:
    for rank in range(3):
        last = job.start((rank, 1))
    assert not last.again and "new checkpoint (there is none yet)" in last.why_not
    start = replace(starts.starts(job.run)[-1], job="18", number=4)
    assert judge(job.run, start, starts.starts(job.run), 1, 3).again
    once = judge(job.run, start, starts.starts(job.run), 1, 1)
    assert not once.again and once.why_not.startswith("this start brought no new checkpoint")


def test_what_a_crash_has_cut_short_is_no_row(tmp_path: Path) -> None:
    starts.begin(tmp_path, "local", "1", ("here",), 1)
    with (tmp_path / starts.JOURNAL).open("a") as file:
        file.write('{"kind": "end", "numb')
    second = starts.begin(tmp_path, "local", "2", ("here",), 1)
    assert [start.number for start in starts.starts(tmp_path)] == [1, 2] and second.number == 2


def test_a_start_is_read_as_it_was_written(tmp_path: Path) -> None:
    start = starts.begin(tmp_path, "slurm", "3", NODES, 8)
    assert starts.starts(tmp_path) == [start] and isinstance(start, Start)
