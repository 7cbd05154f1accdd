"""The same loss, gradients, norm, weights and fast weights at every layout: real processes against one.

The chosen few run every day; `make test-layouts` runs everything (HYPNOS_LAYOUTS=all).
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.layouts.cases import DAILY, FAULTY, TOLERANCE, Case, everything
from tests.layouts.launch import compare, expected
from tests.layouts.problem import CARRIES, Problem
from tests.layouts.worker import errors

CASES = list(everything()) if os.environ.get("HYPNOS_LAYOUTS") == "all" else DAILY
WORLDS = sorted({case.layout.world for case in CASES})


def excess(case: Case, errors: dict[str, float]) -> dict[str, float]:
    """The errors above their tolerance."""
    limits = TOLERANCE[case.problem.precision]
    return {name: error for name, error in errors.items() if not error <= limits[name]}


@pytest.mark.parametrize("world", WORLDS)
def test_as_one_process(world: int, tmp_path: Path) -> None:
    cases = [case for case in CASES if case.layout.world == world]
    found = compare(cases, tmp_path)
    wrong = {str(case): worse for case, e in zip(cases, found, strict=True) if (worse := excess(case, e))}
    assert len(found) == len(cases) and not wrong, "\n".join(f"{case}: {errors}" for case, errors in wrong.items())


def test_planted_errors_are_found(tmp_path: Path) -> None:
    found = compare(FAULTY, tmp_path)
    assert len(found) == len(FAULTY)
    for case, seen in zip(FAULTY, found, strict=True):
        assert excess(case, seen), f"{case.fault} went unnoticed: {seen}"


@pytest.mark.parametrize("when", ["always", "context"])
def test_the_number_of_passes_matters(when: str) -> None:
    """Otherwise the comparisons would say nothing about sleep: N - 1 passes are told from N by everything compared."""
    for passes in (2, 3):
        fewer, as_many = (expected(Problem(when=when, passes=n)) for n in (passes - 1, passes))
        found = errors(replace(fewer, state=fewer.state | {"carries": CARRIES}), as_many)
        assert all(error > 10 * TOLERANCE["fp32"][name] for name, error in found.items()), found
