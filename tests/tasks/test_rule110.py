"""Rule 110 against a simulation that looks each neighbourhood up in the rule's number."""

from __future__ import annotations

import pytest
import torch

from pretrain.config.schema import Rule110Config
from pretrain.data.batch import IGNORE, Batch
from pretrain.errors import UserError
from pretrain.tasks import Rule110


def simulate(ring: list[int], steps: int) -> list[int]:
    """The neighbourhood left, self, right as a binary number selects a bit of 110."""
    for _ in range(steps):
        n = len(ring)
        ring = [
            110 >> (4 * ring[(i - 1) % n] + 2 * ring[i] + ring[(i + 1) % n]) & 1 for i in range(n)
        ]
    return ring


@pytest.mark.parametrize("steps", [0, 1, 2, 32])
def test_labels_are_what_a_simulation_gives(steps: int) -> None:
    task = Rule110(Rule110Config(steps=steps), 24)
    batch = task.sample(5, 10, 6)
    assert batch.size == (6, 100) and batch.starts.shape == (6, 5) and batch.valid.all()
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        labels = [simulate(tokens[24 * r : 24 * r + 24], steps)[0] for r in range(4)]
        assert tokens[96:] == [2] + labels[:3]
        assert targets == [IGNORE] * 96 + labels


def test_chance_is_the_papers_ten_percent() -> None:
    task = Rule110(Rule110Config(), 24)
    batch = task.test(0, 10_000)
    assert 0.498 < batch.tokens[:, :96].double().mean() < 0.502  # 4 standard deviations
    score = task.score(torch.ones_like(batch.targets), batch)
    assert abs(score["label"] - 0.5627) < 0.008
    assert abs(score["exact"] - 0.5627**4) < 0.012
    assert task.score(batch.targets, batch) == {"exact": 1.0, "label": 1.0}


def test_exact_needs_all_labels() -> None:
    task = Rule110(Rule110Config(), 24)
    batch = task.test(0, 8)
    best = batch.targets.clone()
    best[0, -1] = 1 - best[0, -1]
    assert task.score(best, batch) == {"exact": 7 / 8, "label": 31 / 32}


def test_a_row_may_be_asked_for_several_numbers_of_steps_the_deepest_first() -> None:
    task = Rule110(Rule110Config(width=12, rings=2, steps=5, min_steps=3), 12)
    assert task.vocab_size == 5
    batch = task.sample(0, 0, 40)
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        for question, (t, sep) in enumerate([(5, 4), (4, 3), (3, 2)]):
            labels = [simulate(tokens[12 * r : 12 * r + 12], t)[0] for r in range(2)]
            place = 24 + 2 * question
            assert tokens[place : place + 2] == [sep, labels[0]]
            assert targets[place : place + 2] == labels
    best = batch.targets.clone()
    best[:10, 24] = 1 - best[:10, 24]
    assert task.score(best, batch) == {"steps_3": 1.0, "steps_4": 1.0, "steps_5": 0.75}


def test_rows_do_not_depend_on_how_they_are_grouped() -> None:
    task = Rule110(Rule110Config(steps=3), 24)
    parts = torch.cat([task.sample(1, 0, 4).tokens, task.sample(1, 4, 4).tokens])
    assert torch.equal(task.sample(1, 0, 8).tokens, parts)
    assert len({tuple(row) for row in task.sample(1, 0, 500).tokens.tolist()}) == 500
    assert not torch.equal(task.test(1, 8).tokens, parts)


@pytest.mark.parametrize(
    ("width", "rings", "window", "message"),
    [
        (24, 4, 24, None),
        (24, 4, 48, None),  # two rings per window
        (24, 4, 8, None),  # a ring spans three windows
        (
            25,
            4,
            24,
            r"rule110\.width = 25 and sleep\.window = 24: .* set sleep\.window to 25, one ring",
        ),
        (25, 4, 25, None),
        # 4 rings in 3 windows
        (24, 4, 32, r"rule110\.width = 24 and sleep\.window = 32: .* set sleep\.window to 24"),
        (24, 3, 48, r"rule110\.rings = 3: .* set rule110\.rings to 4, or sleep\.window to 24"),
        (24, 9, 8, r"rule110\.rings = 9 labels do not fit"),
    ],
)
def test_windows_that_would_cut_rings_or_mix_them_with_labels_are_refused(
    width: int, rings: int, window: int, message: str | None
) -> None:
    config = Rule110Config(width=width, rings=rings)
    if message is None:
        Rule110(config, window)
        return
    with pytest.raises(UserError, match=message):
        Rule110(config, window)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Rule110Config(min_steps=40), r"rule110\.min_steps = 40 is more than rule110\.steps = 32"),
        (Rule110Config(rings=5, min_steps=8), r"rule110\.rings = 5: the end of a window"),
    ],
)
def test_questions_that_cannot_be_asked_are_refused(rule: Rule110Config, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Rule110(rule, 24)


def test_patterns_that_are_kept_for_the_test_are_never_read() -> None:
    """Of the 32 patterns of five cells that decide a bit two steps later, all others are read."""
    task = Rule110(Rule110Config(width=8, rings=2, steps=2, min_steps=1, kept=8), 8)

    def deciding(batch: Batch) -> set[tuple[int, ...]]:
        rings = batch.tokens[:, :16].reshape(-1, 8)
        return set(map(tuple, rings[:, [6, 7, 0, 1, 2]].tolist()))

    read, tested = deciding(task.sample(0, 0, 1000)), deciding(task.test(0, 1000))
    assert 1 <= len(tested) <= 10 and len(read) + len(tested) == 32 and not read & tested
    once = Rule110(Rule110Config(width=8, rings=2, steps=2, kept=8), 8)
    assert deciding(once.test(0, 1000)) == tested
    for share in (0.5, 1.0):  # a curriculum shows none of them with fewer steps either
        assert not deciding(once.sample_up_to(0, 0, 1000, share)) & tested
    with pytest.raises(UserError, match=r"rule110\.kept = 1 keeps all for the test"):
        Rule110(Rule110Config(kept=1), 24)
