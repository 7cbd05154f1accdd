"""Which blocks go to which stage."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel.stages import Stage, balanced


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.data())
def test_balanced_is_the_best_there_is(costs: list[int], data: st.DataObject) -> None:
    stages = data.draw(st.integers(1, len(costs)))
    bounds = balanced(costs, stages)
    assert bounds[0] == 0 and bounds[-1] == len(costs) and len(bounds) == stages + 1
    assert all(a < b for a, b in itertools.pairwise(bounds))

    def dearest(bounds: tuple[int, ...]) -> int:
        return max(sum(costs[a:b]) for a, b in itertools.pairwise(bounds))

    others = itertools.combinations(range(1, len(costs)), stages - 1)
    assert dearest(bounds) == min(dearest((0, *cuts, len(costs))) for cuts in others)


def test_more_stages_than_blocks() -> None:
    with pytest.raises(ValueError, match="2 blocks cannot fill 3 stages"):
        balanced([1, 1], 3)


def test_a_stage_knows_its_blocks() -> None:
    first, middle, last = (Stage(s, (0, 2, 5, 6)) for s in range(3))
    assert (first.is_first, first.is_last, last.is_first, last.is_last) == (
        True,
        False,
        False,
        True,
    )
    assert list(middle.blocks) == [2, 3, 4] and [middle.of(b) for b in range(6)] == [
        0,
        0,
        1,
        1,
        1,
        2,
    ]
    blocks = list(range(6))
    for stage in (first, middle, last):
        own = blocks[stage.blocks.start : stage.blocks.stop]
        for begin, end in itertools.combinations_with_replacement(range(7), 2):
            assert own[stage.local(begin, end)] == [b for b in own if begin <= b < end]
