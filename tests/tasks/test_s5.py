"""The word problem, checked by multiplying symbol by symbol."""

from __future__ import annotations

import pytest
import torch

from pretrain.config.schema import S5Config
from pretrain.data.batch import IGNORE
from pretrain.errors import UserError
from pretrain.tasks import S5


def test_answers_are_products_of_the_words_beginning() -> None:
    task = S5(S5Config(symbols=4, length=6), 6)
    assert task.vocab_size == 24 + 6
    batch = task.sample(0, 0, 50)
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        assert tokens[6:] == [24, 25, 26, 27, 28, 29] and targets[:6] == [IGNORE] * 6
        for place, n in enumerate((6, 5, 4, 3, 2, 1)):
            product = torch.eye(4)
            for g in tokens[:n]:  # as matrices
                product = product @ torch.eye(4)[task.elements[g]]
            found = torch.eye(4)[task.elements[targets[6 + place]]]
            assert torch.equal(found, product)


def test_a_word_of_one_is_its_element_and_all_products_are_equally_likely() -> None:
    task = S5(S5Config(symbols=3, length=8), 8)
    batch = task.test(0, 6000)
    assert torch.equal(batch.targets[:, -1], batch.tokens[:, 0])
    counts = batch.targets[:, 8].bincount(minlength=6)
    assert int(counts.min()) > 880 and int(counts.max()) < 1120
    best = batch.targets.clone()
    best[:3000, 8] += 1
    right = {f"length_{n}": 1.0 for n in range(1, 8)}
    assert task.score(best, batch) == right | {"length_8": 0.5}


@pytest.mark.parametrize(
    ("symbols", "length", "letters"), [(3, 4, 4), (2, 10, 10), (4, 6, 3), (5, 3, 2)]
)
def test_no_word_of_the_test_is_read(symbols: int, length: int, letters: int) -> None:
    task = S5(S5Config(symbols=symbols, length=length), length)
    batches = task.sample(0, 0, 40_000), task.test(0, 40_000)
    read, tested = ({tuple(row[:letters]) for row in batch.tokens.tolist()} for batch in batches)
    assert not read & tested and 5 < len(read) / len(tested) < 10
    if letters < 4:
        return
    assert len(read) + len(tested) == len(task.elements) ** letters  # so few that all occur
    for batch in batches:  # nothing else separates them: letters are about as likely in both
        for place in range(length):
            counts = batch.tokens[:, place].bincount(minlength=len(task.elements))
            assert counts.max() < 2.2 * counts.min()


def test_too_few_words_are_refused() -> None:
    with pytest.raises(UserError, match=r"set s5\.length to at least 10"):
        S5(S5Config(symbols=2, length=8), 8)


def test_rows_are_a_function_of_their_number() -> None:
    task = S5(S5Config(), 16)
    assert task.vocab_size == 120 + 16
    assert torch.equal(task.sample(1, 7, 5).tokens[2:], task.sample(1, 9, 3).tokens)
