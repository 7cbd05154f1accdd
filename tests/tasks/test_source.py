"""The training stream of a task: the same rows in any batch, on any rank, after any stop."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from pretrain.config.schema import Rule110Config
from pretrain.data.batch import Batch
from pretrain.errors import UserError
from pretrain.tasks import Rule110, TaskSource
from pretrain.tasks.counter import Rows

TASK = Rule110(Rule110Config(width=8, rings=2, steps=2), 8)


def take(source: TaskSource, steps: int) -> torch.Tensor:
    return torch.cat([source.next().tokens for _ in range(steps)])


def test_ranks_share_the_rows_of_one_stream() -> None:
    alone, ranks = (
        TaskSource(TASK, 6, seed=1),
        [TaskSource(TASK, 6, seed=1, rank=r, ranks=3) for r in range(3)],
    )
    assert torch.equal(take(alone, 1), TASK.sample(1, 0, 6).tokens)
    shares = [take(source, 2) for source in ranks]  # 2 steps of 2 rows each
    expected = TASK.sample(1, 0, 12).tokens
    assert torch.equal(torch.cat([s[:2] for s in shares] + [s[2:] for s in shares]), expected)
    assert ranks[0].state_dict() == ranks[2].state_dict()
    for source in [alone, *ranks]:
        source.close()


def test_resumes_at_the_row_where_it_was_saved() -> None:
    first = TaskSource(TASK, 4, seed=1)
    take(first, 3)
    state = json.loads(json.dumps(first.state_dict()))
    expected = take(first, 2)
    resumed = TaskSource(TASK, 8, seed=1)  # another batch size
    take(resumed, 1)
    resumed.load_state_dict(state)
    assert torch.equal(resumed.next().tokens, expected)
    assert resumed.wait_seconds > 0
    first.close()
    resumed.close()


def test_what_was_written_ahead_and_not_taken_comes_again() -> None:
    written: list[int] = []

    class Noting(Rule110):
        def sample(self, seed: int, position: int, rows: int) -> Batch:
            written.append(position)
            return super().sample(seed, position, rows)

    source = TaskSource(Noting(TASK.config, 8), 4, seed=1, rank=1, ranks=2)
    for step in range(3):
        assert torch.equal(source.next().tokens, TASK.sample(1, 4 * step + 2, 2).tokens)
    source.close()
    assert written == [4 * step + 2 for step in range(len(written))] and len(written) > 3
    assert source.state_dict()["rows"] == 12  # what was taken, not what is there
    assert torch.equal(source.next().tokens, TASK.sample(1, 14, 2).tokens)
    source.close()


def test_other_data_is_refused() -> None:
    source = TaskSource(TASK, 4, seed=1)
    state = source.state_dict()
    with pytest.raises(UserError, match="seed is '1', the settings now give '2'"):
        TaskSource(TASK, 4, seed=2).load_state_dict(state)
    with pytest.raises(UserError, match="fingerprint"):
        TaskSource(Rule110(Rule110Config(width=8, rings=2, steps=3), 8), 4, seed=1).load_state_dict(
            state
        )


def test_an_error_in_a_row_reaches_the_caller() -> None:
    class Broken(Rule110):
        def sample(self, seed: int, position: int, rows: int):
            raise UserError("no such row")

    with pytest.raises(UserError, match="no such row"):
        TaskSource(Broken(TASK.config, 8), 4, seed=1).next()


def test_the_counter_generator_is_fair_and_independent() -> None:
    draw = Rows(0, "test", 0, 20_000)
    a, b = draw.uniform("a", 4), draw.uniform("b", 4)
    columns = np.concatenate([a, b], axis=1)
    assert abs(columns.mean(axis=0) - 0.5).max() < 0.009  # 4 standard deviations of 1 / sqrt(12 n)
    correlation = np.corrcoef(columns.T) - np.eye(8)
    assert abs(correlation).max() < 0.03
    assert abs(np.corrcoef(a[:-1, 0], a[1:, 0])[0, 1]) < 0.03  # neighbouring rows
    bits = (draw.words("bits", 1)[:, 0, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert abs(bits.mean(axis=0) - 0.5).max() < 0.015
    counts = np.bincount(draw.below("die", 1, 6)[:, 0], minlength=6)
    assert abs(counts / 20_000 - 1 / 6).max() < 0.011


def test_permutations_and_distinct_numbers_are_uniform() -> None:
    draw = Rows(1, "test", 0, 24_000)
    order = draw.order("order", 5, np.full(24_000, 4))
    assert (order[:, 4] == 4).all()
    codes = np.bincount(order[:, 0] * 16 + order[:, 1] * 4 + order[:, 2], minlength=64)
    assert (codes > 0).sum() == 24 and abs(codes[codes > 0] - 1000).max() < 130
    few = draw.distinct("few", 3, 13)  # by rejection: 13 > 4 * 3
    assert (np.sort(few, axis=1)[:, 1:] != np.sort(few, axis=1)[:, :-1]).all()
    for column in few.T:
        assert abs(np.bincount(column, minlength=13) - 24_000 / 13).max() < 170
    pairs = np.bincount(few[:, 0] * 13 + few[:, 2], minlength=169).reshape(13, 13)
    off = pairs[~np.eye(13, dtype=bool)]
    assert pairs.trace() == 0 and abs(off - 24_000 / 156).max() < 55
