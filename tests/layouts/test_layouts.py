"""The same loss, gradients, norm, weights and fast weights at every layout as in one process.

`make test` runs one of each kind, `make test-all` a chosen few, `make test-layouts` everything.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby, islice

import pytest

from tests.layouts.cases import DAILY, FAULTY, SMOKE, TOLERANCE, Case, everything
from tests.layouts.problem import CARRIES, Problem
from tests.layouts.processes import compare, expected
from tests.layouts.worker import errors

CASES = list(everything()) if "HYPNOS_LAYOUTS" in os.environ else DAILY


def launches(cases: list[Case], most: int = 16) -> Iterator[list[Case]]:
    """Groups of cases that the same processes run: equal numbers of ranks, sorted by grid."""
    cases = sorted(
        cases,
        key=lambda c: (
            c.layout.world, c.layout.tp, c.layout.cp, c.layout.pp, c.layout.sequence_parallel,
            c.layout.by_tokens,
        ),
    )  # fmt: skip
    for _, same in groupby(cases, key=lambda c: c.layout.world):
        yield from batched(same, most)


def batched(cases: Iterable[Case], most: int) -> Iterator[list[Case]]:
    """Consecutive groups of at most `most`."""
    cases = iter(cases)
    while run := list(islice(cases, most)):
        yield run


def check(cases: list[Case]) -> None:
    """Compares them with one process."""
    found = compare(cases)
    for precision in TOLERANCE:  # shown by pytest -rP
        mine = [
            e for case, e in zip(cases, found, strict=True) if case.problem.precision == precision
        ]
        print(
            precision,
            {name: f"{max(e[name] for e in mine):.1e}" for name in TOLERANCE[precision] if mine},
        )
    wrong = {
        str(case): worse for case, e in zip(cases, found, strict=True) if (worse := case.excess(e))
    }
    assert len(found) == len(cases) and not wrong, "\n".join(
        f"{case}: {errors}" for case, errors in wrong.items()
    )


@pytest.mark.smoke
def test_one_layout_of_each_kind() -> None:
    check(SMOKE)


@pytest.mark.parametrize(
    "cases", list(launches(CASES)), ids=lambda cases: f"{cases[0].layout.world} ranks"
)
def test_as_one_process(cases: list[Case]) -> None:
    check(cases)


def test_planted_errors_are_found() -> None:
    found = compare(FAULTY)
    assert len(found) == len(FAULTY)
    for case, seen in zip(FAULTY, found, strict=True):
        assert case.excess(seen), f"{case.plant} went unnoticed: {seen}"


@pytest.mark.smoke
@pytest.mark.parametrize("when", ["always", "context"])
def test_the_number_of_passes_matters(when: str) -> None:
    """Otherwise the comparisons would say nothing about sleep: everything compared differs between
    N - 1 and N passes.
    """
    for passes in (2, 3):
        fewer, as_many = (expected(Problem(when=when, passes=n)) for n in (passes - 1, passes))
        found = errors(replace(fewer, state=fewer.state | {"carries": CARRIES}), as_many)
        assert all(error > 10 * TOLERANCE["fp32"][name] for name, error in found.items()), found
