"""Sampling, compared with transformers' processors and with the requested settings."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pretrain.errors import UserError
from pretrain.inference.sampling import Sampler, Sampling

VOCAB = 50
SEEN = np.zeros(VOCAB, dtype=bool)
SEEN[[3, 7, 30]] = True
LOGITS = 3 * torch.randn(20, VOCAB, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7},
        {"top_k": 5},
        {"top_p": 0.8},
        {"min_p": 0.2},
        {"repetition_penalty": 1.7},
        {"repetition_penalty": 1.3, "temperature": 1.5, "top_k": 12, "top_p": 0.9, "min_p": 0.05},
    ],
)
def test_chances_are_transformers(settings: dict[str, float]) -> None:
    s = Sampling(**settings)  # type: ignore[arg-type]
    theirs = LogitsProcessorList()
    if s.repetition_penalty != 1:
        theirs.append(RepetitionPenaltyLogitsProcessor(s.repetition_penalty))
    theirs.append(TemperatureLogitsWarper(s.temperature))
    theirs += [TopKLogitsWarper(s.top_k)] if s.top_k else []
    theirs += [TopPLogitsWarper(s.top_p)] if s.top_p < 1 else []
    theirs += [MinPLogitsWarper(s.min_p)] if s.min_p else []
    read = torch.from_numpy(SEEN).nonzero().T
    sampler = Sampler(s)
    for logits in LOGITS:
        expected = theirs(read, logits[None].clone())[0].softmax(0)
        ours = sampler.chances(sampler.adjusted(logits, SEEN, {}))
        torch.testing.assert_close(ours / ours.sum(), expected)


def test_biases_and_penalties_are_those_of_the_definition() -> None:
    bias, said, barred = ((2, 5.0), (7, -100.0)), {7: 3, 9: 1}, {2, 40}
    sampling = Sampling(
        presence_penalty=0.5, frequency_penalty=1.25, logit_bias=bias, repetition_penalty=1.5
    )
    for logits in LOGITS[:3]:
        found = Sampler(sampling).adjusted(logits, SEEN, said, barred)
        for token, logit in enumerate(logits.tolist()):
            logit += dict(bias).get(token, 0.0)
            if SEEN[token]:
                logit = logit / 1.5 if logit > 0 else logit * 1.5
            logit -= (0.5 if token in said else 0.0) + 1.25 * said.get(token, 0)
            expected = -math.inf if token in barred else logit
            assert float(found[token]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("top_k", [0, 1, 7, 300])
@pytest.mark.parametrize("top_p", [1.0, 0.97, 0.5, 1e-9])
def test_chances_are_those_of_the_definition(top_k: int, top_p: float) -> None:
    """Also if many tokens are equally likely: then the first of them are within top_p."""
    for digits in (0, 1, 9):
        logits = 3 * torch.randn(500, generator=torch.Generator().manual_seed(digits)).double()
        logits = logits.round(decimals=digits)
        expected = logits.softmax(0)
        if top_k:
            expected[logits < logits.sort(descending=True).values[top_k - 1]] = 0
        total, sum_before = float(expected.sum()), 0.0
        for token in expected.sort(descending=True, stable=True).indices.tolist():
            chance = float(expected[token])
            expected[token] = chance if sum_before < top_p * total else 0
            sum_before += chance
        found = Sampler(Sampling(top_k=top_k, top_p=top_p)).chances(logits)
        assert torch.equal(found > 0, expected > 0)
        torch.testing.assert_close(found / found.sum(), expected / expected.sum())


def test_a_large_vocabulary_is_not_sorted_as_a_whole() -> None:
    """Sorting with indices took 23 ms per token at a vocabulary of 152k."""
    logits, seen = torch.randn(151_936), np.zeros(151_936, dtype=bool)
    for settings in ({"top_p": 0.9}, {"top_p": 0.9, "top_k": 40}):
        sampler = Sampler(Sampling(**settings))  # type: ignore[arg-type]
        with torch.profiler.profile() as profile:
            sampler.choose(logits, seen)
        named = {event.name for event in profile.events() or []}
        assert not named & {"aten::sort", "aten::_log_softmax"}


def test_draws_have_the_chances_and_are_a_function_of_seed_and_number() -> None:
    logits, sampler = LOGITS[0], Sampler(Sampling(seed=5, temperature=2.0))
    drawn = [sampler.choose(logits, SEEN).token for _ in range(4000)]
    share = torch.bincount(torch.tensor(drawn), minlength=VOCAB) / len(drawn)
    assert (share - (logits / 2).softmax(0)).abs().max() < 0.02
    later = Sampler(sampler.sampling, drawn=100)
    assert [later.choose(logits, SEEN).token for _ in range(50)] == drawn[100:150]
    other = Sampler(Sampling(seed=6, temperature=2.0))
    assert [other.choose(logits, SEEN).token for _ in range(50)] != drawn[:50]


def test_greedy_and_what_is_told() -> None:
    sampler = Sampler(Sampling(temperature=0, logprobs=3, repetition_penalty=1e6))
    expected = LOGITS[1].log_softmax(0)
    best = expected.argsort(descending=True).tolist()
    choice = sampler.choose(LOGITS[1], np.zeros(VOCAB, dtype=bool))
    assert choice.token == best[0] and sampler.drawn == 0
    assert [token for token, _ in choice.top] == best[:3]
    assert choice.logprob == choice.top[0][1] == pytest.approx(float(expected[best[0]]))
    seen = np.arange(VOCAB) == best[0]
    repeated = sampler.choose(LOGITS[1], seen)
    assert repeated.token == best[1]  # reported log-probabilities are the model's own
    assert repeated.top == choice.top and repeated.logprob == choice.top[1][1]


def test_the_least_temperature_takes_the_likeliest() -> None:
    sampler, none = Sampler(Sampling(temperature=1e-308)), np.zeros(VOCAB, dtype=bool)
    assert sampler.choose(LOGITS[1], none).token == LOGITS[1].argmax()


@pytest.mark.parametrize("penalty", [5e-324, 1e308])
def test_a_penalty_that_overflows_still_gives_a_token(penalty: float) -> None:
    sampler = Sampler(Sampling(repetition_penalty=penalty))
    for logits in (LOGITS[0].double(), LOGITS[0].double().abs(), -LOGITS[0].double().abs()):
        assert 0 <= sampler.choose(logits * 1e3, ~np.zeros(VOCAB, dtype=bool)).token < VOCAB


def test_a_padded_vocabulary_is_never_chosen() -> None:
    sampler = Sampler(Sampling(temperature=5.0, logprobs=9), vocab_size=3)
    choices = [sampler.choose(logits, SEEN) for logits in LOGITS]
    assert {c.token for c in choices} == {0, 1, 2} and all(len(c.top) == 3 for c in choices)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("temperature", -1.0), ("temperature", float("nan")), ("top_p", 0.0), ("top_p", 1.1),
        ("top_k", -1), ("min_p", 1.5), ("repetition_penalty", 0.0), ("seed", -1),
        ("logprobs", -2), ("presence_penalty", float("inf")), ("frequency_penalty", float("nan")),
    ],
)  # fmt: skip
def test_settings_out_of_bounds_are_named(setting: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"^{setting} = .*: must be "):
        Sampling(**{setting: value})  # type: ignore[arg-type]
