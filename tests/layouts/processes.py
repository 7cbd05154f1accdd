"""Real ranks for a list of cases."""

from __future__ import annotations

from functools import cache

from tests.layouts.cases import Case
from tests.layouts.problem import Problem, Solution, solve
from tests.layouts.worker import solve_all
from tests.ranks import run_ranks


@cache
def expected(problem: Problem) -> Solution:
    """The solution of one process."""
    solution = solve(problem)
    if problem.documents is None:
        assert min(solution.norms) > 2 * problem.optimization.clip, "clipping must be active"
    return solution


def compare(cases: list[Case]) -> list[dict[str, float]]:
    """The errors of every case; all need the same number of ranks, which are started once."""
    (world,) = {case.layout.world for case in cases}
    references = [vars(expected(case.problem)) for case in cases]
    found: list[dict[str, float]]
    found, *_ = run_ranks(world, solve_all, cases, references, timeout=180 + 60 * len(cases))
    return found
