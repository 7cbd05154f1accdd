"""A task whose context is read several times: the same rows, more copies of it, the same score."""

from __future__ import annotations

import pytest
import torch

from pretrain.config.load import parse
from pretrain.data.batch import IGNORE
from pretrain.errors import UserError
from pretrain.tasks import make_task

DEPO = (
    '[data]\ntask = "depo"\nrepeats = %d\n[depo]\nnodes = 4\nqueries = 2\ncontext = 16\n'
    "name_tokens = [1, 1]\nmax_hops = 2\nmask_pad = true\n"
)
RULE = '[data]\ntask = "rule110"\nrepeats = %d\n[rule110]\nwidth = 8\nrings = 2\nsteps = 1\n'


@pytest.mark.parametrize(("settings", "L", "context"), [(DEPO, 8, 16), (RULE, 8, 16)])
def test_windows_of_context_are_read_again(settings: str, L: int, context: int) -> None:
    once = make_task(parse(settings % 1), L)
    thrice = make_task(parse(settings % 3), 3 * L)
    assert thrice.vocab_size == once.vocab_size and thrice.fingerprint != once.fingerprint
    a, b = once.sample(0, 5, 4), thrice.sample(0, 5, 4)
    for window in range(context // L):
        part = slice(window * L, (window + 1) * L)
        for copy in range(3):
            start = (3 * window + copy) * L
            assert torch.equal(b.tokens[:, start : start + L], a.tokens[:, part])
            assert torch.equal(b.valid[:, start : start + L], a.valid[:, part])
    assert torch.equal(b.tokens[:, 3 * context :], a.tokens[:, context:])
    assert torch.equal(b.targets[:, 3 * context :], a.targets[:, context:])
    assert bool((b.targets[:, : 3 * context] == IGNORE).all())
    assert b.starts.shape[1] == -(-b.size[1] // (3 * L)) and b.starts.sum() == 4


def test_a_refusal_says_that_windows_hold_several_copies() -> None:
    with pytest.raises(UserError, match=r"sleep.window to 8, .*; with data.repeats = 2, sleep.win"):
        make_task(parse(RULE % 2), 14)
    with pytest.raises(UserError, match=r"raise it to 4$"):
        make_task(parse(DEPO % 2 + "vocabulary = 1\n"), 16)


@pytest.mark.parametrize(("settings", "L"), [(DEPO, 8), (RULE, 8)])
def test_scores_are_the_tasks_own(settings: str, L: int) -> None:
    once, twice = make_task(parse(settings % 1), L), make_task(parse(settings % 2), 2 * L)
    a, b = once.test(0, 16), twice.test(0, 16)
    wrong = [batch.targets.clone() for batch in (a, b)]
    for targets in wrong:  # wrong in half of the rows
        targets[:8] = torch.where(targets[:8] == IGNORE, IGNORE, 0)
    assert once.score(wrong[0], a) == twice.score(wrong[1], b) != once.score(a.targets, a)
