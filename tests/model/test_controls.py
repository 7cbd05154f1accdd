"""The method's control variants against the oracle, and random numbers of passes."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import get_args, get_type_hints

import pytest
import torch

from parallel import gated_delta_net
from parallel.delta_rule import recurrent_delta_rule
from pretrain.config.load import parse
from pretrain.config.schema import SleepConfig
from pretrain.errors import UserError
from pretrain.model import draw
from pretrain.model.draw import draw_passes, drawn_passes
from pretrain.model.flops import step_flops
from tests.marks import slow
from tests.model.tiny import MODEL, L, assert_like_oracle, build, change, sequences

CONTEXT = change(passes=3, when="context")
CHOICES = get_type_hints(SleepConfig)
UNSCORED = {0: [0, 1], 1: [0]}


# With "context" for these and "awake" for the others, every two settings occur together.
PAIRS = {("both", "sliding"), ("h", "none"), ("S", "hard")}


@pytest.mark.parametrize(
    ("when", "carries", "eviction"),
    [
        (when, carries, eviction)
        if ((carries, eviction) in PAIRS) == (when == "context")
        else slow(when, carries, eviction)
        for when in ("context", "awake")
        for carries in get_args(CHOICES["carries"])
        for eviction in get_args(CHOICES["eviction"])
    ],
)
def test_controls_are_what_the_oracle_makes_of_them(when: str, carries: str, eviction: str) -> None:
    sleep = change(CONTEXT, when=when, carries=carries, eviction=eviction)
    assert_like_oracle(build(sleep), sequences(3 * L + 2, unscored=UNSCORED))


@pytest.mark.parametrize("parts", [{"prelude": 1}, {"coda": 1}, {"prelude": 1, "coda": 2}])
def test_a_looped_model_may_have_a_prelude_and_a_coda(parts: dict[str, int]) -> None:
    sleep = change(CONTEXT, when="awake", carries="h", **parts)
    assert_like_oracle(build(sleep), sequences(3 * L, unscored=UNSCORED))


@pytest.mark.parametrize(
    ("when", "carries", "last"),
    [
        ("awake", "both", 1), ("awake", "h", 2), slow("context", "h", 1), ("context", "S", 1),
        slow("awake", "S", 2),
    ],
)  # fmt: skip
def test_controls_whose_last_passes_alone_are_trained(when: str, carries: str, last: int) -> None:
    """No gradient reaches an earlier window; every pass that is trained trains its embedding."""
    sleep = change(CONTEXT, when=when, carries=carries, truncate_passes=last)
    assert_like_oracle(build(sleep), sequences(3 * L, unscored=UNSCORED))


def test_each_control_gives_another_model() -> None:
    batch = sequences(3 * L + 2, unscored=UNSCORED)
    changed: list[dict[str, int | str]] = [
        {}, {"passes": 1}, {"carries": "h"}, {"carries": "S"}, {"when": "awake"},
        {"when": "awake", "carries": "h"}, {"eviction": "none"}, {"eviction": "sliding"},
    ]  # fmt: skip
    losses = [float(build(change(CONTEXT, **c))(batch).loss.detach()) for c in changed]
    assert min(abs(a - b) for i, a in enumerate(losses) for b in losses[:i]) > 1e-4


def test_without_eviction_a_window_makes_no_difference_to_attention() -> None:
    model = dataclasses.replace(MODEL, layers=["attention", "attention"])
    batch = sequences(4 * L)
    losses = []
    for window in (L, 4 * L):
        batch.starts = torch.zeros(2, 4 * L // window, dtype=torch.bool)
        batch.starts[:, 0] = True
        sleep = SleepConfig(passes=1, window=window, eviction="none")
        losses.append(build(sleep, model)(batch).loss)
    torch.testing.assert_close(losses[0], losses[1])


def test_numbers_of_passes_are_drawn_evenly_and_are_the_same_again() -> None:
    config = parse("[sleep]\npasses = 4\nmin_passes = 2\n")
    drawn = [draw_passes(config, step) for step in range(3000)]
    assert drawn == [draw_passes(config, step) for step in range(3000)]
    assert all(900 < drawn.count(n) < 1100 for n in (2, 3, 4))
    assert [
        draw_passes(parse("[run]\nseed = 1\n[sleep]\nmin_passes = 2\n"), s) for s in range(99)
    ] != drawn[:99]
    assert {draw_passes(parse(""), step) for step in range(9)} == {4}


@pytest.mark.parametrize(
    "sleep",
    ["passes = 4", "passes = 4\nmin_passes = 2", "passes = 3\ncurriculum = 100",
     "passes = 5\nmin_passes = 2\ncurriculum = 7", "passes = 4\ncurriculum = 2000"],
)  # fmt: skip
def test_how_often_each_n_is_drawn(sleep: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw, "BLOCK", 100)
    config = parse(f"[run]\nseed = 3\n[sleep]\n{sleep}\n[train]\nsteps = 950\n")
    found = +drawn_passes(config)  # unary plus: only those that are drawn
    assert found == Counter(draw_passes(config, step) for step in range(950))


def test_flops_of_random_passes_are_their_mean() -> None:
    batch = sequences(3 * L, unscored=UNSCORED)
    alone = [step_flops(batch, MODEL, change(CONTEXT, passes=n)) for n in (2, 3)]
    both = step_flops(batch, MODEL, CONTEXT, {3: 2, 2: 2})
    assert both.forward == (alone[0].forward + alone[1].forward) / 2
    assert both.sleep == (alone[0].sleep + alone[1].sleep) / 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("[sleep]\nmin_passes = 5", "sleep.min_passes = 5: must be at most sleep.passes = 4"),
        ('[sleep]\nwhen = "awake"\n[parallel]\npp = 2', 'sleep.when = "awake": this control'),
        ('[sleep]\ncarries = "S"\nprelude = 1', "set sleep.prelude = 0"),
        ('[sleep]\neviction = "none"', "set data.carry = false"),
        ("[data]\nrepeats = 2", "of a generated task: set it to 1"),
        ('[data]\nrepeats = 3\ntask = "depo"', "must be a multiple of data.repeats = 3"),
    ],
)
def test_controls_that_cannot_be_are_refused(settings: str, message: str) -> None:
    from pretrain.config.checks import validate

    with pytest.raises(UserError) as refused:
        validate(parse(settings))
    assert message in str(refused.value)


def test_negative_eigenvalues_double_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here only beta; the rule itself is compared with the paper's recurrence elsewhere."""
    seen: list[torch.Tensor] = []

    def recorded(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_decay: torch.Tensor,
        beta: torch.Tensor, S: torch.Tensor, chunk: int,
    ) -> tuple[torch.Tensor | None, torch.Tensor]:  # fmt: skip
        seen.append(beta)
        return recurrent_delta_rule(q, k, v, log_decay, beta, S)

    config = dataclasses.replace(MODEL, delta_negative_eigenvalues=True)
    batch = sequences(2 * L)
    chunked = [build(change(passes=1), c)(batch).loss.detach() for c in (config, MODEL)]
    monkeypatch.setattr(gated_delta_net, "delta_rule", recorded)
    by_token = [build(change(passes=1), c)(batch).loss.detach() for c in (config, MODEL)]
    torch.testing.assert_close(chunked, by_token)
    doubled, plain = seen[0], seen[len(seen) // 2]  # of the first block
    assert torch.equal(doubled, 2 * plain) and float(doubled.detach().max()) > 1
    assert abs(float(chunked[0] - chunked[1])) > 1e-3
