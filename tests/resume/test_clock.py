"""Time decides nothing: with a clock that goes backwards, or files of any age, a resumed run is the
same.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

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


def test_a_resumed_run_does_not_ask_the_time(
    corpus: Path, finished: Finished, tmp_path: Path
) -> None:
    (whole, expected), run = finished(CASE), Run(CASE, corpus, tmp_path)
    job = run.start()
    until(job, LONGEST, lambda: len(job.samples(0)) >= 7)
    assert job.kill()
    step = saved.resume_point(run.folder)
    assert 0 < step < STEPS and len(saved.steps(run.folder)) > 1
    for number, path in enumerate(sorted(run.folder.rglob("*"))):
        then = from_the_future(number)
        os.utime(path, (then, then))

    assert saved.resume_point(run.folder) == step
    job = run.finish(clock=-10 * YEAR)
    assert [job.samples(r) for r in (0, 1)] == [expected.samples(r)[step:] for r in (0, 1)]
    assert saved.resume_point(run.folder) == STEPS
    saved.assert_same(saved.folder(run.folder, STEPS), saved.folder(whole.folder, STEPS))
    assert rows(run.folder) == rows(whole.folder)
