"""A disk that fills up ends a run with one line, and loses nothing that was saved.

A full disk is simulated for a rank by limiting the size of its files (RLIMIT_FSIZE), which needs
no privilege.
"""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from tests.resume import saved
from tests.resume.conftest import Finished
from tests.resume.job import Job
from tests.resume.problem import STEPS, Case
from tests.resume.run import LONGEST, SOON, Run, assert_ends, errors, until
from tests.runs import rows

# bytes: more than metrics.jsonl and TensorBoard's file need, less than any rank's weights
FOR_METRICS = 28_000
CASES = [  # with the rank whose disk is full
    (Case(2, {"zero": 1}), 1),
    (Case(2, {"pp": 2}, microbatches=2), 0),
    (Case(2, {"tp": 2}), 1),
    (Case(2, {"zero": 3}), 0),
]


def fill_disk(job: Job, rank: int, room: int) -> None:
    """From now on the rank's files cannot grow beyond `room` bytes."""
    pid = job.processes[rank].pid
    assert pid is not None
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (room, room))


@pytest.mark.parametrize(("case", "rank"), CASES, ids=str)
def test_a_checkpoint_that_does_not_fit(
    case: Case, rank: int, corpus: Path, finished: Finished, tmp_path: Path
) -> None:
    (whole, expected), run = finished(case), Run(case, corpus, tmp_path)
    job = run.start()
    until(job, LONGEST, lambda: len(job.samples(rank)) >= 5)
    fill_disk(job, rank, FOR_METRICS)
    said = [
        f"cannot be saved by rank {rank} on ",
        "File too large",
        "the checkpoints before it are intact",
    ]
    assert_ends(job, said=said, statuses=[2, 2])
    assert not run.leftovers() and not run.strangers()
    step = saved.resume_point(run.folder)
    assert 0 < step < STEPS and f"step {step + case.checkpoint_every} cannot be saved" in job.log()

    job = run.finish()
    assert [job.samples(r) for r in (0, 1)] == [expected.samples(r)[step:] for r in (0, 1)]
    saved.assert_same(saved.folder(run.folder, STEPS), saved.folder(whole.folder, STEPS))
    assert rows(run.folder) == rows(whole.folder) and not run.leftovers()


@pytest.mark.parametrize("case", [Case(1, {}), Case(2, {"zero": 1})], ids=str)
def test_metrics_that_do_not_fit(
    case: Case, corpus: Path, finished: Finished, tmp_path: Path
) -> None:
    # soon after the first, rows are written but no checkpoint
    (whole, _), run = finished(case), Run(case, corpus, tmp_path, checkpoint_every=STEPS // 2)
    job = run.start()
    until(job, LONGEST, lambda: bool(saved.steps(run.folder)))
    fill_disk(job, 0, (run.folder / "metrics.jsonl").stat().st_size + 100)
    statuses = job.wait(SOON)
    assert statuses[0] == 2 and None not in statuses and 0 not in statuses, job.log()
    # TensorBoard's own thread may have reported its file before
    said = "metrics.jsonl: cannot be written: File too large; make room there"
    assert said in errors(job, 0)[-1], job.log()
    for rank in range(1, case.world):
        (line,) = errors(job, rank)
        assert "rank is gone" in line, job.log()  # while it saves, or after that
    step = saved.resume_point(run.folder)
    assert 0 < step < STEPS and not run.leftovers()
    run.finish()
    assert rows(run.folder) == rows(whole.folder)


@pytest.mark.parametrize("name", ["config.toml", "metrics.jsonl"])
def test_a_run_that_cannot_write_its_files(name: str, corpus: Path, tmp_path: Path) -> None:
    """Not even to resume: something is in the way."""
    run = Run(Case(2, {"zero": 1}), corpus, tmp_path)
    job = run.start()
    until(job, LONGEST, lambda: bool(saved.steps(run.folder)))
    job.kill()
    step = saved.resume_point(run.folder)
    (run.folder / f".{name}.draft").mkdir()
    said = f".{name}.draft: cannot be written: Is a directory; check the file system there"
    assert_ends(run.start(), said=[said], statuses=[2, 2])
    assert saved.resume_point(run.folder) == step > 0
