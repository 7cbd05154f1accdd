"""Runs on a real Slurm, in trouble and out of it: whatever happens, the end is that of a run that
nothing happened to.
"""

from __future__ import annotations

from tests.cluster.run_of import STEPS, Run
from tests.cluster.slurm import Cluster


def test_two_nodes(undisturbed: Run) -> None:
    """Submitted, run, over: written down, with a log of each rank."""
    (start,) = undisturbed.starts
    assert start.nodes == ("n0", "n1") and start.ranks == 2 and start.end is not None
    assert (start.end.status, start.end.why, start.end.step) == (0, "finished", STEPS)
    logs = start.logs(undisturbed.folder)
    assert f"step {STEPS}/{STEPS}" in (logs / "rank-0.log").read_text()
    assert "step" not in (logs / "rank-1.log").read_text() and not list(logs.glob("*.end"))
    assert f"step {STEPS}/{STEPS}" in undisturbed.batch_log()


def test_a_rank_that_is_killed(cluster: Cluster, undisturbed: Run) -> None:
    """The others end, the first death is told first, and the job starts again by itself."""
    run = Run(cluster, "killed")
    run.submit()
    run.until_step(10)
    run.kill_rank("n1")
    cluster.until(lambda: not run.ranks("n0"), 10, "the other rank ends")
    run.until_over("COMPLETED")
    first, second = run.starts
    assert first.end is not None and first.end.why == "rank 1 on n1 ended with status 137 (SIGKILL)"
    assert second.end is not None and second.end.status == 0 and second.job == first.job
    told = run.batch_log().partition(first.end.why)[2].partition("start 2 of")[0]
    assert "the end of" in told and "rank-1.log" in told and "rank-0.log" not in told
    run.assert_same(undisturbed)
