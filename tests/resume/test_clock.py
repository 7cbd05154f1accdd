"""Time decides nothing: a clock that goes backwards, or files of any age, leave a resumed run the
same.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.resume import saved
from tests.resume.conftest import Finished
from tests.resume.problem import STEPS, Case
from tests.resume.run import LONGEST, Run, until
from tests.runs import rows

CASE = Case(2, {"zero": 1})
YEAR = 365 * 86400.0


def from_the_future(number: int) -> float:
    """The further down a sorted list, the older: the newest checkpoint looks like the oldest."""
    return time.time() + YEAR - 60 * number


def of_any_age(number: int) -> float:
    """Shuffled."""
    return time.time() + random.Random(number).uniform(-YEAR, YEAR)


@pytest.mark.parametrize(("age", "clock"), [(from_the_future, -10 * YEAR), (of_any_age, 0.0)])
def test_a_resumed_run_does_not_ask_the_time(
    age: Callable[[int], float], clock: float, corpus: Path, finished: Finished, tmp_path: Path
) -> None:
    (whole, expected), run = finished(CASE), Run(CASE, corpus, tmp_path)
    job = run.start()
    until(job, LONGEST, lambda: len(job.samples(0)) >= 7)
    assert job.kill()
    step = saved.resume_point(run.folder)
    assert 0 < step < STEPS and len(saved.steps(run.folder)) > 1
    for number, path in enumerate(sorted(run.folder.rglob("*"))):
        os.utime(path, (age(number), age(number)))

    assert saved.resume_point(run.folder) == step
    job = run.finish(clock)
    assert [job.samples(r) for r in (0, 1)] == [expected.samples(r)[step:] for r in (0, 1)]
    assert saved.resume_point(run.folder) == STEPS
    saved.assert_same(saved.folder(run.folder, STEPS), saved.folder(whole.folder, STEPS))
    assert rows(run.folder) == rows(whole.folder)
