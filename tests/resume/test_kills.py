"""Killed at any moment and resumed, a run is the same run: real ranks die by SIGKILL, in the middle
of saves too.

About twenty kills by default; HYPNOS_KILLS sets their number, and `make test-kills` makes it a
hundred.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pytest

from tests.resume import saved
from tests.resume.conftest import Finished
from tests.resume.job import Job
from tests.resume.problem import KEEP, STEPS, TIMEOUT, Case
from tests.resume.run import LONGEST, Run, until
from tests.runs import rows

KILLS = int(os.environ.get("HYPNOS_KILLS", 20))
CASES = [
    Case(2, {"zero": 1}),
    Case(2, {"tp": 2}, eviction="sliding", checkpoint_every=1),
    Case(2, {"pp": 2}, microbatches=2, precision="bf16", checkpoint_every=3),
    Case(2, {"zero": 3}),
]
# seconds that survivors which are not connected yet get to end; a launcher would end them at once
STARTING = 2.0


@dataclass
class Whole:
    """A run that was never killed."""

    folder: Path  # with the checkpoint of every step
    samples: list[list[str]]  # for each rank, the batch of each step
    to_start: float  # seconds from the start to the first step
    to_end: float  # seconds from the first step to the end
    saving: float  # seconds that a save takes

    def left(self, step: int) -> float:
        """Seconds that a run should take from a step to the end."""
        return self.to_start + self.to_end * (STEPS - step) / STEPS


def never_killed(case: Case, corpus: Path, root: Path) -> Whole:
    """The run that all others of a case must equal."""
    run = Run(case, corpus, root, checkpoint_every=1, keep=STEPS)
    job = run.start()
    until(job, LONGEST, lambda: bool(job.samples(0)))
    first, saving = time.monotonic(), []
    for _ in range(STEPS):
        until(job, LONGEST, lambda: bool(saved.traces(run.folder)))
        begin = time.monotonic()
        until(job, LONGEST, lambda: not saved.traces(run.folder))
        saving.append(time.monotonic() - begin)
    assert job.wait(LONGEST) == [0] * case.world, job.log()
    samples = [job.samples(r) for r in range(case.world)]
    assert all(len(taken) == len(set(taken)) == STEPS for taken in samples), (
        "a repeated sample would go unnoticed"
    )
    assert any(
        ".safetensors: lanes." in name
        for name in saved.content(saved.folder(run.folder, STEPS // 2))
    )
    return Whole(run.folder, samples, first - job.began, time.monotonic() - first, median(saving))


class Killer:
    """Starts one run again and again, kills it each time, and checks what is left."""

    def __init__(
        self, case: Case, corpus: Path, root: Path, whole: Whole, chance: random.Random
    ) -> None:
        self.whole, self.chance = whole, chance
        self.run = Run(case, corpus, root)
        self.step = 0  # that the next start will resume from
        # like `samples`; of each step, as read by the last start that reached it
        self.read: list[list[str]] = [[] for _ in whole.samples]

    def live(self, kills: int) -> Counter[str]:
        """Takes the run to its end, with at most `kills` kills; counts them by what they hit."""
        hits: Counter[str] = Counter()
        while self.step < STEPS and hits.total() < kills:
            hits[self.kill_one()] += 1
        if self.step < STEPS:
            self.check(self.run.finish())
            assert not self.run.leftovers() and len(saved.steps(self.run.folder)) == KEEP
        assert self.read == self.whole.samples
        assert rows(self.run.folder) == rows(self.whole.folder)
        return hits

    def kill_one(self) -> str:
        """Starts the run and kills it; returns what that hit, "nothing" if it was already done."""
        before = saved.traces(self.run.folder)
        job = self.run.start()
        saves = -(-(STEPS - self.step) // self.run.case.checkpoint_every)  # still to come
        if self.chance.random() < 0.7:
            written = self.chance.random() < 0.5
            self.await_save(job, self.chance.randint(1, min(saves, 3)), written)
            until(job, self.chance.uniform(0, self.whole.saving / (5 if written else 1)))
        else:
            until(job, self.chance.uniform(0, self.whole.left(self.step)))
        some = self.chance.choice([None, None, [0], [self.run.case.world - 1]])
        killed = job.kill(some)
        self.check_survivors(job)
        self.check(job)
        if not killed:
            assert job.wait(0) == [0] * self.run.case.world and self.step == STEPS, job.log()
            return "nothing"
        if saved.traces(self.run.folder) - before:
            return "save"
        if self.step == STEPS:
            return "end"
        last = job.journal(0)[-1:] or ["start-up"]
        return {"start-up": "start-up", "evaluates": "evaluation"}.get(last[0], "training")

    def await_save(self, job: Job, number: int, written: bool) -> None:
        """Waits until `number` saves have begun; if `written`, also until the last one has begun to
        move its files into place.
        """
        old = saved.traces(self.run.folder)

        def drafts() -> set[str]:
            return {name for name, _ in saved.traces(self.run.folder) - old}

        for _ in range(number - 1):
            until(job, LONGEST, lambda: bool(drafts()))
            until(job, LONGEST, lambda: not drafts())
        until(job, LONGEST, lambda: bool(drafts()))
        if written:
            begun = drafts()
            until(job, LONGEST, lambda: not begun <= drafts())

    def check_survivors(self, job: Job) -> None:
        """Ranks whose neighbour has died end by themselves once they are connected."""
        training = all(job.samples(r) for r in range(self.run.case.world))
        if None in job.wait(2 * TIMEOUT if training else STARTING):
            assert not training, f"a rank outlives another:\n{job.log()}"
            job.kill()

    def check(self, job: Job) -> None:
        """The saved step never goes back; the checkpoint is whole and equals the uninterrupted
        run's; and the job has read what it should have.
        """
        for r, expected in enumerate(self.whole.samples):
            self.read[r][self.step :] = job.samples(r)
            assert self.read[r] == expected[: len(self.read[r])], (
                f"rank {r} reads other samples\n{job.log()}"
            )
        step = saved.resume_point(self.run.folder)
        assert self.step <= step, f"step {self.step} was saved, and now it is step {step}"
        if step:
            saved.assert_same(
                saved.folder(self.run.folder, step), saved.folder(self.whole.folder, step)
            )
        self.step = step
        assert not self.run.strangers()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_killed_at_any_moment(case: Case, corpus: Path, tmp_path: Path) -> None:
    chance = random.Random(str(case))
    whole = never_killed(case, corpus, tmp_path / "whole")
    hits: Counter[str] = Counter()
    kills, lives = max(1, KILLS // len(CASES)), 0
    while (missing := kills - hits.total() + hits["nothing"]) > 0 or not (
        hits["save"] and hits["training"]
    ):
        lives += 1
        hits += Killer(case, corpus, tmp_path / f"life-{lives}", whole, chance).live(
            max(missing, 2)
        )
        assert hits.total() < 5 * kills + 20, hits
    print(
        f"{case}: {hits.total() - hits['nothing']} kills in {lives} lives, that hit: {dict(hits)}"
    )  # see pytest -rP


@pytest.mark.smoke
def test_killed_once(corpus: Path, finished: Finished, tmp_path: Path) -> None:
    """In the middle of training: the rest of the data is read, and the run is the same."""
    (whole, expected), run = finished(CASES[0]), Run(CASES[0], corpus, tmp_path)
    job = run.start()
    until(job, LONGEST, lambda: len(job.samples(0)) >= STEPS // 2)
    assert job.kill()
    step = saved.resume_point(run.folder)
    assert 0 < step < STEPS
    job = run.finish()
    assert [job.samples(r) for r in (0, 1)] == [expected.samples(r)[step:] for r in (0, 1)]
    saved.assert_same(saved.folder(run.folder, STEPS), saved.folder(whole.folder, STEPS))
    assert rows(run.folder) == rows(whole.folder) and not run.leftovers()
