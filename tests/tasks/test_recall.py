"""Recall, answered again from the decoded text by following the statements."""

from __future__ import annotations

import re

import pytest

from pretrain.config.schema import RecallConfig
from pretrain.data.batch import IGNORE
from pretrain.errors import UserError
from pretrain.tasks import Recall
from tokenizer.encode import Tokenizer


def split(ids: list[int], at: int) -> list[list[int]]:
    """The parts between occurrences of one token."""
    ends = [i for i, token in enumerate(ids) if token == at]
    return [ids[a:b] for a, b in zip([0, *(e + 1 for e in ends)], [*ends, len(ids)], strict=True)]


@pytest.mark.parametrize(("questions", "letters", "digits"), [(1, 3, 3), (2, 1, 1)])
def test_numbers_follow_from_the_statements_in_the_text(
    tokenizer: Tokenizer, questions: int, letters: int, digits: int
) -> None:
    sizes = RecallConfig(
        context=384, chains=2, max_hops=2, questions=questions, name_letters=letters, digits=digits
    )
    task = Recall(sizes, 128, tokenizer)
    batch = task.test(0, 12)
    assert batch.grade.tolist() == [0, 1, 2] * 4 and batch.size[0] == 12
    for row in range(12):
        text = tokenizer.decode(batch.tokens[row, :384][batch.valid[row, :384]].tolist())
        said = dict(re.findall(r"VAR (\w+) = (\w+)\.", text))
        assert len(said) == 6
        ids = batch.tokens[row, 384:][batch.valid[row, 384:]].tolist()
        asked = [tokenizer.decode(part) for part in split(ids, tokenizer.eos)]
        scored = batch.targets[row][batch.targets[row] != IGNORE].tolist()
        *answers, rest = [tokenizer.decode(part).strip() for part in split(scored, tokenizer.eos)]
        assert len(answers) == len(asked) == questions and rest == ""  # each ends with EOS
        for question, answer in zip(asked, answers, strict=True):
            found = re.fullmatch(r"VAR (\w+) = (\d+)", question)
            assert found and len(found[1]) == letters and len(found[2]) == digits
            name, hops = found[1], 0
            while not said[name].isdigit():
                name, hops = said[name], hops + 1
            assert hops == batch.grade[row] and answer == found[2] == said[name]
        assert len({*answers}) == questions  # each from another chain
        assert bool((batch.targets[row, :384] == IGNORE).all())
        assert len(text) > 200  # most of it is Python's documentation


def test_scores_are_by_hops_and_rows_by_number(tokenizer: Tokenizer) -> None:
    task = Recall(RecallConfig(context=256, chains=1, max_hops=1), 128, tokenizer)
    batch = task.test(0, 4)
    best = batch.targets.clone()
    best[0] = 0
    assert task.score(best, batch) == {"hops_0": 0.5, "hops_1": 1.0}
    best[1, batch.targets[1].ne(IGNORE).nonzero()[0]] = 0  # a digit
    assert task.score(best, batch) == {"hops_0": 0.5, "hops_1": 0.5}
    assert task.sample(0, 5, 3).tokens.tolist() == task.sample(0, 4, 4).tokens[1:].tolist()


def test_each_question_is_scored_by_itself(tokenizer: Tokenizer) -> None:
    task = Recall(RecallConfig(context=256, chains=4, max_hops=0, questions=4), 128, tokenizer)
    batch = task.test(0, 2)
    best, (ends,) = (
        batch.targets.clone(),
        (batch.targets[1] == tokenizer.eos).nonzero(as_tuple=True),
    )
    best[1, ends[2] - 1] = 0  # the last digit of the third answer
    assert task.score(best, batch) == {"hops_0": 7 / 8}


def test_needles_alone(tokenizer: Tokenizer) -> None:
    task = Recall(RecallConfig(context=256, chains=3, max_hops=0), 128, tokenizer)
    assert task.sample(0, 0, 8).grade.tolist() == task.test(0, 8).grade.tolist() == [0] * 8


def test_too_many_statements_are_refused(tokenizer: Tokenizer) -> None:
    task = Recall(RecallConfig(context=128, chains=50), 128, tokenizer)
    with pytest.raises(UserError, match="does not hold 250 statements"):
        task.sample(0, 0, 1)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        (
            {"name_letters": 1, "chains": 3},
            "need 15 names, more than half of the 26 that exist; raise recall.name",
        ),
        (
            {"digits": 1, "chains": 10},
            "10 chains need as many numbers, but only 9 exist; raise recall.digits",
        ),
        ({"questions": 3}, "a different one of the 2 chains; lower it"),
        ({"questions": 20, "chains": 20}, "does not hold 20 questions; set it to"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    tokenizer: Tokenizer, sizes: dict[str, int], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        Recall(RecallConfig(context=128, **sizes), 128, tokenizer)
