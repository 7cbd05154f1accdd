"""Recall, answered again from the decoded text by following the statements."""

from __future__ import annotations

import re

import pytest

from pretrain.config.schema import RecallConfig
from pretrain.data.batch import IGNORE
from pretrain.errors import UserError
from pretrain.tasks import Recall
from tokenizer.encode import Tokenizer


def test_numbers_follow_from_the_statements_in_the_text(tokenizer: Tokenizer) -> None:
    task = Recall(RecallConfig(context=384, chains=2, max_hops=2), 128, tokenizer)
    batch = task.test(0, 12)
    assert batch.grade.tolist() == [0, 1, 2] * 4 and batch.size[0] == 12
    for row in range(12):
        text = tokenizer.decode(batch.tokens[row, :384][batch.valid[row, :384]].tolist())
        said = dict(re.findall(r"VAR (\w+) = (\w+)\.", text))
        assert len(said) == 6
        question = tokenizer.decode(batch.tokens[row, 384:][batch.valid[row, 384:]].tolist())
        found = re.search(r"VAR (\w+) =", question)
        assert found
        name, hops = found[1], 0
        while not said[name].isdigit():
            name, hops = said[name], hops + 1
        assert hops == batch.grade[row]
        targets = batch.targets[row][batch.targets[row] != IGNORE].tolist()
        assert targets[-1] == tokenizer.eos
        assert tokenizer.decode(targets[:-1]).strip() == said[name]
        assert bool((batch.targets[row, :384] == IGNORE).all())
        assert len(text) > 200  # most of it is the documentation of Python


def test_scores_are_by_hops_and_rows_by_number(tokenizer: Tokenizer) -> None:
    task = Recall(RecallConfig(context=256, chains=1, max_hops=1), 128, tokenizer)
    batch = task.test(0, 4)
    best = batch.targets.clone()
    best[0] = 0
    assert task.score(best, batch) == {"hops_0": 0.5, "hops_1": 1.0}
    assert task.sample(0, 5, 3).tokens.tolist() == task.sample(0, 4, 4).tokens[1:].tolist()


def test_needles_alone(tokenizer: Tokenizer) -> None:
    task = Recall(RecallConfig(context=256, chains=3, max_hops=0), 128, tokenizer)
    assert task.sample(0, 0, 8).grade.tolist() == task.test(0, 8).grade.tolist() == [0] * 8


def test_too_many_statements_are_refused(tokenizer: Tokenizer) -> None:
    task = Recall(RecallConfig(context=128, chains=50), 128, tokenizer)
    with pytest.raises(UserError, match="does not hold 250 statements"):
        task.sample(0, 0, 1)
