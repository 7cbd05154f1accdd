"""Runs on a real Slurm: whatever happens to them, the result equals that of an undisturbed run."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from launch.starts import starts
from tests.cluster.run_of import LONG, STEPS, TRAIN, Run, arguments, assert_same, hypnos, soon
from tests.cluster.slurm import Cluster, sh


@pytest.fixture(scope="module")
def limited(cluster: Cluster, two_ranks: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run suspended until its time is up: some minutes, in which other tests run."""
    (whole,) = starts(two_ranks)
    assert whole.end is not None
    minutes = 3 + int((whole.end.time - whole.time) // 30)  # more if starts are slow
    site = tmp_path_factory.mktemp("site") / "site.toml"
    site.write_text("[slurm]\nsave_before = 10\n")
    run = Run(cluster, "limited")
    run.submit("--time", str(minutes), "--site", str(site))
    run.until_step(10)
    run.hold()
    return run


@pytest.mark.usefixtures("limited")
def test_two_nodes(cluster: Cluster, two_ranks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run from submission, within another job's step, to its end is recorded, with a log of each
    rank.
    """
    run = Run(cluster, "whole")
    with monkeypatch.context() as within:  # which srun would take as options
        for name in ("SLURM_MEM_PER_CPU", "SLURM_MEM_PER_NODE", "SLURM_CPU_BIND", "SLURM_JOB_ID"):
            within.setenv(name, "7")
        run.submit()
    run.until_over("COMPLETED")
    (start,) = run.starts
    assert start.nodes == ("n0", "n1") and start.ranks == 2 and start.end is not None
    assert (start.end.status, start.end.why, start.end.step) == (0, "finished", STEPS)
    logs = start.logs(run.folder)
    assert f"step {STEPS}/{STEPS}" in (logs / "rank-0.log").read_text()
    assert "step" not in (logs / "rank-1.log").read_text() and not list(logs.glob("*.end"))
    assert f"step {STEPS}/{STEPS}" in run.batch_log()
    told = hypnos("launch", "status", str(run.folder))
    assert f"step {STEPS} of {STEPS}" in told and "completed, status 0:0" in told
    assert_same(run.folder, two_ranks)


def test_what_the_cluster_refuses(cluster: Cluster, tmp_path: Path) -> None:
    run, site = Run(cluster, "refused"), tmp_path / "site.toml"
    site.write_text('[slurm]\nmpi = "pmi9"\n')
    with pytest.raises(AssertionError, match=r'slurm.mpi = "pmi9": srun here supports only .*none'):
        run.submit("--site", str(site))
    with pytest.raises(AssertionError, match=r"sbatch refuses .*invalid partition"):
        run.submit("--partition", "nowhere")


def test_cancelled(cluster: Cluster, two_ranks: Path) -> None:
    """Ranks save, Slurm does not start the job again, and a plain srun continues from there."""
    run = Run(cluster, "cancelled")
    run.submit()
    with run.held_at(10):
        assert "running on n[0-1]" in hypnos("launch", "status", str(run.folder))
        hypnos("launch", "cancel", str(run.folder))
    run.until_over("CANCELLED")
    cluster.until(lambda: run.starts[-1].end is not None, LONG, "its end is written down")
    (start,) = run.starts
    assert start.end is not None and start.end.why == "stopped: status 143 (SIGTERM)"
    assert "after step" in run.batch_log() and "is saved" in run.batch_log()
    srun = ["srun", "--nodes=2", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    sh(*srun, *TRAIN, *run.train)  # as a user's own script would
    assert_same(run.folder, two_ranks)


def test_many_runs_of_which_one_loses_a_rank(
    cluster: Cluster, two_ranks: Path, tmp_path: Path
) -> None:
    """A job array: the other ranks of the task end, the first death is the one reported, and the
    task restarts by itself; the other task goes on.
    """
    array, beside, killed = tmp_path / "many.txt", Run(cluster, "beside"), Run(cluster, "killed")
    array.write_text(f"run.name={beside.folder.name}\nrun.name={killed.folder.name}\n")
    config, folder, _ = arguments(killed.folder)
    many = ["--array", str(array), "--at-once", "2"]
    hypnos("launch", "slurm", config, folder, "--nodes", "2", "--submit", *many)
    beside.find_job()
    killed.find_job()
    with killed.held_at(10):
        killed.kill_rank("n1")
        begin = time.monotonic()
    cluster.until(lambda: not killed.ranks("n0"), LONG, "the other rank ends")
    assert time.monotonic() - begin < soon(two_ranks)
    for run in (beside, killed):
        run.until_over("COMPLETED")
        assert_same(run.folder, two_ranks)
    first, second = killed.starts
    assert first.end is not None and first.end.why == "rank 1 on n1 ended with status 137 (SIGKILL)"
    assert second.end is not None and second.end.status == 0 and second.job == first.job
    told = killed.batch_log().partition(first.end.why)[2].partition("start 2 of")[0]
    assert "the end of" in told and "rank-1.log" in told and "rank-0.log" not in told
    assert len(beside.starts) == 1


def test_a_save_that_is_interrupted(cluster: Cluster, two_ranks: Path) -> None:
    """By SIGKILL, after the signal that asked for the save: what had been saved counts."""
    run = Run(cluster, "interrupted")
    run.submit()
    with run.held_at(10) as ranks:
        sh("scancel", "--signal=USR1", run.job)
    deadline = time.monotonic() + LONG
    while not list(run.folder.glob("checkpoints/.step-*")) and run.ranks("n0"):
        assert time.monotonic() < deadline
    for pid in ranks:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    run.until_over("COMPLETED")
    first, second = run.starts
    assert first.end is not None and first.end.status in (75, 137)
    assert second.step is not None and second.step >= 10
    assert_same(run.folder, two_ranks)


def test_the_time_limit(cluster: Cluster, limited: Run, two_ranks: Path) -> None:
    """Slurm resumes the suspended ranks and sends SIGUSR1: they save, and the job starts again."""
    Run.touched.append(limited.folder)
    cluster.until(lambda: limited.starts[0].end is not None, LONG, "its time is up")
    limited.until_over("COMPLETED")
    *cut_short, last = limited.starts  # several on a slow machine
    ends = [(start.end.status, start.end.why) for start in cut_short if start.end]
    assert ends == [(75, "the time limit was reached")] * len(cut_short) and cut_short
    assert last.step is not None and last.step >= 10 and last.job == cut_short[0].job
    assert_same(limited.folder, two_ranks)


def test_preempted(cluster: Cluster, two_ranks: Path) -> None:
    """By a job of a partition with priority: Slurm requeues the job, and starts it later."""
    run = Run(cluster, "preempted")
    run.submit()
    with run.held_at(10):
        whole = ["--nodes=3", "--exclusive", "--partition=first", "--output=/dev/null"]
        sh("sbatch", *whole, "--wrap", "sleep 1")
        cluster.until(
            lambda: cluster.job(run.job)["Restarts"] == "1", LONG, "it is taken back", 0.5
        )
    run.until_over("COMPLETED")
    first, second = run.starts
    assert first.end is not None and first.end.status == 143 and not first.end.exclude
    assert second.step is not None and first.end.step == second.step, "what was done is lost"
    assert_same(run.folder, two_ranks)


@pytest.mark.parametrize("node", ["n1", "n0"])
def test_a_node_that_is_lost(node: str, cluster: Cluster, two_ranks: Path) -> None:
    """The run finishes elsewhere. n0 has rank 0 and the batch script: nothing is left to change the
    job's node list, but Slurm knows that n0 is down.
    """
    run = Run(cluster, f"lost-{node}")
    run.submit()
    (other,) = {"n0", "n1"} - {node}
    with run.held_at(10):
        cluster.lose(node)
        begin = time.monotonic()
    try:
        cluster.until(lambda: not run.ranks(other), LONG, "the other rank ends")
        assert time.monotonic() - begin < soon(two_ranks)
        run.until_over("COMPLETED")
    finally:
        cluster.start_node(node)
        cluster.until(lambda: cluster.states()[node] == "idle", LONG, f"{node} is back", 0.5)
    first, second = run.starts
    rank = {"n0": 0, "n1": 1}[node]
    assert first.end is not None
    assert first.end.why == f"{node} lost: rank {rank} left no exit record"
    assert first.end.exclude == (node,) and second.nodes == (other, "n2")
    if node == "n1":
        assert cluster.job(run.job)["ExcNodeList"] == "n1"
    assert_same(run.folder, two_ranks)
