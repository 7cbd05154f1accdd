"""Uninterrupted runs to compare with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.resume.job import Job
from tests.resume.problem import Case
from tests.resume.run import Run

Finished = Callable[[Case], tuple[Run, Job]]


@pytest.fixture(scope="session")
def finished(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """For each case the uninterrupted run, which the others must equal."""

    known: dict[str, tuple[Run, Job]] = {}

    def finish(case: Case) -> tuple[Run, Job]:
        if repr(case) not in known:
            run = Run(case, corpus, tmp_path_factory.mktemp("whole"))
            known[repr(case)] = run, run.finish()
        return known[repr(case)]

    return finish
