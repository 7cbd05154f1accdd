"""Unfit nodes on a real Slurm: the job detects them and continues without them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launch.starts import newest_step
from tests.cluster.run_of import LONG, Run, assert_same
from tests.cluster.slurm import Cluster, sh


def test_no_progress(cluster: Cluster) -> None:
    """A host where a rank dies twice is excluded; without a checkpoint there is no fourth start."""
    run = Run(cluster, "hopeless")
    run.submit()
    for number in range(1, 4):
        cluster.until(
            lambda n=number: len(run.starts) == n and bool(run.ranks(run.starts[-1].nodes[0])),
            LONG,
            f"start {number}",
        )
        run.kill_rank(run.starts[-1].nodes[0])
    run.until_over("FAILED")
    assert [start.nodes for start in run.starts] == [("n0", "n1"), ("n0", "n1"), ("n1", "n2")]
    assert cluster.job(run.job)["ExcNodeList"] == "n0"
    assert "3 starts in a row brought no new checkpoint (there is none yet)" in run.batch_log()
    assert newest_step(run.folder) is None


def test_a_node_that_differs(
    cluster: Cluster, two_ranks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """n2 lacks one run's folder, and has stale code for the other: both finish elsewhere."""
    hidden, stale = Run(cluster, "not-on-n2/runs"), Run(cluster, "code")
    sh("scontrol", "update", "NodeName=n1", "State=DRAIN", "Reason=test")
    hidden.submit()
    with monkeypatch.context() as inside:
        inside.setenv("PYTHONPATH", str(cluster.folder / "clone"))
        inside.chdir(cluster.folder / "clone")
        stale.submit()
    for run in (hidden, stale):
        cluster.until(lambda run=run: bool(run.starts and run.starts[0].end), LONG, "a start ends")
    sh("scontrol", "update", "NodeName=n1", "State=RESUME")
    told = {hidden: "rank 1 on n2: .* does not exist", stale: "the version of Hypnos.* on n2"}
    for run, why in told.items():
        run.until_over("COMPLETED")
        first, second = run.starts
        assert first.nodes == ("n0", "n2") and second.nodes == ("n0", "n1")
        assert first.end is not None and first.end.exclude == ("n2",)
        assert re.search(why, run.batch_log())
        assert_same(run.folder, two_ranks)
