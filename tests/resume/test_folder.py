"""A run folder that cannot be used: one line on every rank, and nothing in it is changed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from signal import SIGCONT, SIGSTOP

import pytest

from pretrain.config.load import dump
from tests.resume import saved
from tests.resume.conftest import Finished
from tests.resume.problem import STEPS, Case, make_config
from tests.resume.run import LONGEST, Run, assert_ends, until
from tests.runs import rows

CASES = [Case(1, {}), Case(2, {"zero": 1})]


def content(folder: Path) -> dict[Path, bytes]:
    """Every file but the lock, which says who had it last."""
    return {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock"
    }


@pytest.fixture
def run(case: Case, corpus: Path, tmp_path: Path) -> Run:
    return Run(case, corpus, tmp_path)


def elsewhere(run: Run, place: Path) -> None:
    """Sets run.dir."""
    run.config.write_text(dump(make_config(run.case, run.corpus, place)))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_file_system_that_cannot_be_written(run: Run) -> None:
    elsewhere(run, Path("/proc/sys"))  # not writable even by root
    assert_ends(
        run.start(),
        said=["/proc/sys/run", "cannot be written", "set run.dir"],
        statuses=[2] * run.case.world,
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_folder_below_a_file(run: Run) -> None:
    elsewhere(run, run.config)
    job = run.start()
    assert_ends(
        job,
        said=[f"{run.config}/run", "Not a directory; ", "set run.dir"],
        statuses=[2] * run.case.world,
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_checkpoints_that_are_a_file(run: Run) -> None:
    run.folder.mkdir(parents=True)
    (run.folder / "checkpoints").write_text("mine")
    assert_ends(
        run.start(), said=["run/checkpoints: ", "File exists; "], statuses=[2] * run.case.world
    )
    assert content(run.folder) == {run.folder / "checkpoints": b"mine"}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_runs_in_one_folder(
    case: Case, corpus: Path, finished: Finished, tmp_path: Path
) -> None:
    (whole, _), run = finished(case), Run(case, corpus, tmp_path)
    first = run.start()
    until(first, LONGEST, lambda: bool(first.samples(0)))
    first.signal(SIGSTOP, range(case.world))  # otherwise it may be finished when the second starts
    holder = f"process {first.processes[0].pid} on {os.uname().nodename}"
    second = run.start()
    assert_ends(
        second, said=["another run is writing here", holder, "run.name"], statuses=[2] * case.world
    )
    first.signal(SIGCONT, range(case.world))
    assert not second.samples(0) and first.wait(LONGEST) == [0] * case.world, first.log()
    saved.assert_same(saved.folder(run.folder, STEPS), saved.folder(whole.folder, STEPS))
    assert rows(run.folder) == rows(whole.folder)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_run_that_was_killed_holds_nothing(run: Run) -> None:
    first = run.start()
    until(first, LONGEST, lambda: bool(first.samples(0)))
    assert first.kill()
    run.finish()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_another_versions_checkpoint_is_left_alone(run: Run) -> None:
    """It is not skipped for an older one that this version can read."""
    run.finish()
    newest = saved.steps(run.folder)[-1]
    index = saved.folder(run.folder, newest) / "index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"format": 5, "chunks": []}))
    run.config.write_text(
        dump(make_config(run.case, run.corpus, run.root / "runs", steps=2 * STEPS))
    )
    before = content(run.folder)
    assert_ends(
        run.start(),
        said=[f"step-{newest}", "format 5, but this Hypnos reads format 4", "run.name"],
        statuses=[2] * run.case.world,
    )
    assert content(run.folder) == before
