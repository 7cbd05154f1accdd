"""Dependencies, solved again from the tokens by a search that shares no code with the task."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from pretrain.config.schema import BrevoConfig
from pretrain.data.batch import IGNORE
from pretrain.errors import UserError
from pretrain.tasks import Brevo

SMALL = BrevoConfig(nodes=8, needs=2, max_depth=3, context=32, vocabulary=12)


def test_an_answer_lists_all_that_is_needed_leaves_first() -> None:
    task = Brevo(SMALL, 16)
    for batch in (task.sample(0, 0, 60), task.test(0, 60)):
        for row in range(60):
            read = batch.tokens[row, :32][batch.valid[row, :32]].tolist()
            edges = set(zip(read[::2], read[1::2], strict=True))
            asked, ans = batch.tokens[row, 32:34].tolist()
            assert ans == 1 and min(read) >= 3

            @cache
            def chain(node: int, edges: frozenset[tuple[int, int]] = frozenset(edges)) -> int:
                return max((1 + chain(b) for a, b in edges if a == node), default=0)

            reached = {asked}
            while more := {b for a, b in edges if a in reached} - reached:
                reached |= more
            expected = [*sorted(reached, key=lambda node: (chain(node), node)), 2]
            targets = batch.targets[row]
            assert targets[targets != IGNORE].tolist() == expected
            assert targets[33 : 33 + len(expected)].tolist() == expected
            assert batch.tokens[row, 34 : 33 + len(expected)].tolist() == expected[:-1]
            assert chain(asked) == batch.grade[row]


def test_tests_hold_every_height_and_score_whole_lists() -> None:
    task = Brevo(SMALL, 16)
    batch = task.test(0, 9)
    assert batch.grade.tolist() == [1, 2, 3] * 3
    best = batch.targets.clone()
    best[0, 34] += 1
    assert task.score(best, batch) == {"depth_1": 2 / 3, "depth_2": 1.0, "depth_3": 1.0}
    assert torch.equal(task.sample(3, 4, 4).tokens, task.sample(3, 2, 6).tokens[2:])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BrevoConfig(vocabulary=3), "brevo.vocabulary = 3 gives fewer names than brevo.nodes = 16"),
        (BrevoConfig(context=16), "set it to at least 64"),
        (BrevoConfig(nodes=6, max_depth=4), "raise it to 8, or lower the depth"),
        (BrevoConfig(needs=1, max_depth=8), "raise it to 2, or lower the depth"),
        (BrevoConfig(nodes=15, context=60), "set it to 17 or more, or lower brevo.nodes"),
    ],
)
def test_what_cannot_be_laid_out_is_refused(config: BrevoConfig, message: str) -> None:
    with pytest.raises(UserError) as refused:
        Brevo(config, 4)
    assert message in str(refused.value)
