"""Associative recall, checked by reading its tokens back."""

from __future__ import annotations

import pytest
import torch

from pretrain.config.schema import MqarConfig
from pretrain.data.batch import IGNORE
from pretrain.errors import UserError
from pretrain.tasks import Mqar


def test_each_query_has_the_value_of_its_pair() -> None:
    task = Mqar(MqarConfig(pairs=8, queries=3, vocabulary=20), 8)
    batch = task.sample(0, 3, 50)
    assert batch.size == (50, 19) and batch.starts.shape[1] == 3
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        pairs = dict(zip(tokens[:16:2], tokens[1:16:2], strict=True))
        assert len(pairs) == 8 and max(pairs) < 20 <= min(pairs.values())
        assert targets == [IGNORE] * 16 + [pairs[key] for key in tokens[16:]]
        assert len(set(tokens[16:])) == 3
    assert torch.equal(batch.tokens[10:], task.sample(0, 13, 40).tokens)
    assert not torch.equal(task.test(0, 50).tokens, batch.tokens)


def test_scores() -> None:
    task = Mqar(MqarConfig(pairs=4, queries=2), 8)
    batch = task.test(0, 4)
    best = batch.targets.clone()
    best[0, -1] += 1
    assert task.score(best, batch) == {"exact": 3 / 4, "value": 7 / 8}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MqarConfig(pairs=4, queries=5), "so queries <= pairs <= vocabulary, but they are 5, 4"),
        (MqarConfig(pairs=128), "128 and 64; lower mqar.queries or raise mqar.vocabulary"),
        (MqarConfig(pairs=5, queries=2), "which is not a multiple of sleep.window = 8"),
    ],
)
def test_what_cannot_be_laid_out_is_refused(config: MqarConfig, message: str) -> None:
    with pytest.raises(UserError) as refused:
        Mqar(config, 8)
    assert message in str(refused.value)
