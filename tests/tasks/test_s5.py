"""The word problem, multiplied out symbol by symbol."""

from __future__ import annotations

import pytest
import torch

from pretrain.config.schema import S5Config
from pretrain.data.batch import IGNORE
from pretrain.tasks import S5


def test_answers_are_products_of_the_words_beginning() -> None:
    task = S5(S5Config(symbols=4, length=6), 6)
    assert task.asked == [6, 4, 2, 1] and task.vocab_size == 24 + 4
    batch = task.sample(0, 0, 50)
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        assert tokens[6:] == [24, 25, 26, 27] and targets[:6] == [IGNORE] * 6
        for place, n in enumerate(task.asked):
            product = torch.eye(4)
            for g in tokens[:n]:  # as matrices
                product = product @ torch.eye(4)[task.elements[g]]
            found = torch.eye(4)[task.elements[targets[6 + place]]]
            assert torch.equal(found, product)


def test_a_word_of_one_is_its_element_and_all_products_are_equally_likely() -> None:
    task = S5(S5Config(symbols=3, length=4), 4)
    batch = task.test(0, 6000)
    assert torch.equal(batch.targets[:, -1], batch.tokens[:, 0])
    counts = batch.targets[:, 4].bincount(minlength=6)
    assert int(counts.min()) > 880 and int(counts.max()) < 1120
    best = batch.targets.clone()
    best[:3000, 4] += 1
    assert task.score(best, batch) == {"length_1": 1.0, "length_2": 1.0, "length_4": 0.5}


@pytest.mark.parametrize(("symbols", "length"), [(3, 4), (2, 1), (2, 5), (3, 9), (5, 3)])
def test_no_word_of_the_test_is_read(symbols: int, length: int) -> None:
    task = S5(S5Config(symbols=symbols, length=length), length)
    ending = min(length, {2: 16, 3: 6, 5: 2}[symbols])
    read, tested = (
        {tuple(row[length - ending : length]) for row in batch.tokens.tolist()}
        for batch in (task.sample(0, 0, 20_000), task.test(0, 20_000))
    )
    assert not read & tested
    if (symbols, length) == (3, 4):  # all words are read but for those
        assert (len(read), len(tested)) == (1296 * 7 // 8, 1296 // 8)


def test_rows_are_a_function_of_their_number() -> None:
    task = S5(S5Config(), 16)
    assert task.vocab_size == 120 + 5
    assert torch.equal(task.sample(1, 7, 5).tokens[2:], task.sample(1, 9, 3).tokens)
