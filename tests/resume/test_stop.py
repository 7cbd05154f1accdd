"""Told to stop, a run saves the last whole step and ends, wherever it is; resumed, it is the same
run.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGSTOP, SIGTERM, SIGUSR1, Signals

import pytest

from parallel.talk import STORE_TIMEOUT_S
from pretrain.exit_status import after_signal
from pretrain.run.stop import ONE_PRESS_S
from tests.resume import saved
from tests.resume.job import Job
from tests.resume.problem import STEPS, Case
from tests.resume.run import LONGEST, Run, until
from tests.runs import rows

DEADLINE = 30.0  # seconds; these checkpoints are small
STOPS = 4  # per run, every second one during an evaluation
CASES = [
    Case(2, {"zero": 1}, passes=9),
    Case(2, {"pp": 2}, microbatches=2, passes=9),
]


def assert_stopped(job: Job, number: Signals, seconds: float = DEADLINE) -> None:
    """All ranks end in time, with the status of the signal."""
    assert job.wait(seconds) == [after_signal(number)] * len(job.processes), job.log()
    assert f"stopped by {number.name} on rank" in job.log() and "Traceback" not in job.log()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_stopped_again_and_again(case: Case, corpus: Path, tmp_path: Path) -> None:
    """No checkpoints are due before the end, so whatever is saved was saved because of a stop."""
    chance = random.Random(str(case))
    whole = Run(case, corpus, tmp_path / "whole", checkpoint_every=1, keep=STEPS)
    whole.finish()
    run = Run(case, corpus, tmp_path / "parts", checkpoint_every=STEPS)
    stops, evaluating, step = 0, 0, 0
    while stops < STOPS or not evaluating:
        job = run.start()
        if stops % 2:  # wait for an evaluation
            until(
                job,
                LONGEST,
                lambda job=job: bool(job.samples(0)) and job.journal(0)[-1] == "evaluates",
            )
        else:
            until(job, LONGEST, lambda job=job: bool(job.samples(0)) and bool(job.samples(1)))
            time.sleep(chance.uniform(0, 0.1))
        in_evaluation = job.journal(0)[-1:] == ["evaluates"]
        number, ranks = chance.choice(
            [(SIGTERM, [0, 1]), (SIGTERM, [1]), (SIGUSR1, [0]), (SIGINT, [0, 1])]
        )
        job.signal(number, ranks)
        if 0 in job.wait(DEADLINE):  # it had already finished
            break
        assert_stopped(job, number)
        assert step <= saved.resume_point(run.folder), "what was done is lost"
        step = saved.resume_point(run.folder)
        evaluated = "state.json: evaluated"  # whether that step's evaluation was also over
        if step:
            saved.assert_same(
                saved.folder(run.folder, step), saved.folder(whole.folder, step), but=evaluated
            )
        stops, evaluating = stops + 1, evaluating + in_evaluation
    run.finish()
    assert evaluating
    assert rows(run.folder) == rows(whole.folder)
    assert len(saved.steps(run.folder)) > 1 and not run.leftovers()


def test_a_step_that_was_skipped_is_recorded_before_the_end(corpus: Path, tmp_path: Path) -> None:
    """Verdicts are read a step late, except the last one. Here the first step ruins the weights, so
    that all later ones are skipped.
    """
    # no checkpoint before the end, as the verdict would be read before it
    case = Case(2, {"zero": 1}, checkpoint_every=STEPS)
    runs = Run(case, corpus, tmp_path / "whole"), Run(case, corpus, tmp_path / "parts")
    for run in runs:
        text = run.config.read_text()
        assert "adamw_lr = 0.002" in text and "limit = 10" in text
        run.config.write_text(
            text.replace("adamw_lr = 0.002", "adamw_lr = 1e15").replace("limit = 10", "limit = 99")
        )
    whole, run = runs
    whole.finish()
    job = run.start()
    until(job, LONGEST, lambda: len(job.samples(0)) > 4)
    job.signal(SIGTERM, [1])
    assert_stopped(job, SIGTERM)
    step = saved.resume_point(run.folder)
    skipped = [row["step"] for row in rows(run.folder) if row["kind"] == "skipped"]
    assert skipped == list(range(2, step + 1)) and step > 2
    run.finish()
    assert rows(run.folder) == rows(whole.folder)


@pytest.mark.parametrize("ranks", [[0], [1], [0, 1]])
def test_a_long_sleep_is_given_up(ranks: list[int], corpus: Path, tmp_path: Path) -> None:
    """A step of thousands of passes, which would take minutes to finish."""
    run = Run(Case(2, {"zero": 1}, passes=20_000), corpus, tmp_path, eval_every=100)
    job = run.start()
    until(job, LONGEST, lambda: bool(job.journal(0)) and bool(job.journal(1)))
    time.sleep(1)
    job.signal(SIGTERM, ranks)
    assert_stopped(job, SIGTERM)
    assert saved.resume_point(run.folder) == 0 and saved.steps(run.folder) == [0]
    assert not job.samples(0) or "step" in job.journal(0)[-1]


def test_a_dead_rank_is_not_waited_for(corpus: Path, tmp_path: Path) -> None:
    run = Run(Case(2, {"zero": 1}, passes=20_000), corpus, tmp_path)
    job = run.start()
    until(job, LONGEST, lambda: bool(job.journal(1)))
    job.kill([1])
    job.signal(SIGTERM, [0])
    assert job.wait(DEADLINE + STORE_TIMEOUT_S)[0] not in (0, None), job.log()
    assert saved.resume_point(run.folder) == 0


def test_it_outlives_who_reads_what_it_says(corpus: Path, tmp_path: Path) -> None:
    run = Run(Case(2, {"zero": 1}, checkpoint_every=STEPS), corpus, tmp_path)
    job = run.start(unread=True)
    until(job, LONGEST, lambda: len(job.samples(0)) > 4)
    job.signal(SIGHUP, [1])  # its terminal has closed
    assert job.wait(DEADLINE) == [128 + SIGHUP] * 2
    assert saved.resume_point(run.folder) > 1


def test_a_terminal_and_a_launcher_may_both_pass_one_ctrl_c_on(
    corpus: Path, tmp_path: Path
) -> None:
    run = Run(Case(2, {"zero": 1}, passes=20_000), corpus, tmp_path)
    job = run.start()
    until(job, LONGEST, lambda: bool(job.journal(0)) and bool(job.journal(1)))
    for _ in range(3):
        job.signal(SIGINT, [0, 1])
        time.sleep(0.01)
    assert_stopped(job, SIGINT)
    assert "Ctrl-C again" in job.log() and saved.steps(run.folder) == [0]


def test_a_second_ctrl_c_ends_the_run_at_once(corpus: Path, tmp_path: Path) -> None:
    """Also while the other rank is suspended, which keeps the first one from saving."""
    run = Run(Case(2, {"zero": 1}, passes=20_000), corpus, tmp_path)
    job = run.start()
    until(job, LONGEST, lambda: bool(job.journal(0)) and bool(job.journal(1)))
    job.signal(SIGSTOP, [1])
    job.signal(SIGINT, [0])
    time.sleep(1.5 * ONE_PRESS_S)
    assert job.alive
    job.signal(SIGINT, [0])
    assert job.wait(STORE_TIMEOUT_S / 2)[0] == 128 + SIGINT
    assert not saved.steps(run.folder) and "Traceback" not in job.log()
    job.kill()
