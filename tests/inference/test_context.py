"""A context that a session reads is what training makes of a task's context."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pretrain.config.schema import SleepConfig
from pretrain.data.batch import IGNORE, Batch
from pretrain.inference.decode import Decoder
from pretrain.inference.generate import continue_text
from pretrain.inference.sampling import Sampling
from pretrain.inference.session import Session
from pretrain.model.plan import WindowPlan
from pretrain.model.sleep import SleepLM
from pretrain.model.stop_rule import StopRule
from tests.model.tiny import MODEL, L, build
from tokenizer.encode import Tokenizer

CONTEXT, QUESTION = 2 * L + 4, 5  # the context begins with a window that is not full


def draw(tokens: int) -> Tensor:
    return torch.randint(
        MODEL.vocab_size, (tokens,), generator=torch.Generator().manual_seed(tokens)
    )


def row(ids: Tensor, question: int = QUESTION, scored: int = QUESTION, empty: int = 0) -> Batch:
    """A row of a task: the context left-padded to whole windows, `empty` ones before it, then the
    question.
    """
    pad = -(len(ids) - question) % L + empty * L
    tokens = torch.cat([torch.zeros(pad, dtype=torch.int64), ids])[None]
    targets, valid = torch.full_like(tokens, IGNORE), torch.ones_like(tokens, dtype=torch.bool)
    targets[:, -scored:] = 1
    valid[:, :pad] = False
    starts = torch.tensor([[True] + [False] * ((tokens.shape[1] - 1) // L)])
    return Batch(tokens, targets, valid, starts, torch.zeros(1, dtype=torch.bool))


def answers(model: SleepLM, batch: Batch, stop: StopRule | None = None) -> Tensor:
    """[QUESTION, vocabulary] logits at the scored positions, from the training forward."""
    said: list[Tensor] = []

    def head(plan: WindowPlan, y: Tensor, targets: Tensor) -> Tensor:
        said.append(model.logits(y))
        return model.losses(y, targets)

    with torch.no_grad():
        model(batch, head=head, stop=stop)
    return said[0]


@pytest.mark.parametrize("when", ["always", "context"])
@pytest.mark.parametrize("eviction", ["hard", "sliding"])
@pytest.mark.parametrize("coda", [0, 1])
def test_the_answer_is_that_of_training(when: str, eviction: str, coda: int) -> None:
    ids = draw(CONTEXT + QUESTION)
    by_n = {}
    for N in (1, 3):
        sleep = SleepConfig(window=L, passes=N, when=when, eviction=eviction, coda=coda)  # type: ignore[arg-type]
        model = build(sleep)
        session = Session(Decoder(model))
        session.read_context(ids[:CONTEXT])
        assert (session.position, session.filled, session.slept) == (CONTEXT, 0, 3)
        assert session.sleep_passes == 3 * (N - 1)
        by_n[N] = session.read(ids[CONTEXT:], every=True)
        expected = answers(model, row(ids))
        # PAD shifts the positions in the first window, and rotary angles are fp32
        torch.testing.assert_close(by_n[N], expected, atol=1e-6, rtol=1e-6)
    assert (by_n[1] - by_n[3]).abs().max() > 1e-3  # sleep changes the answer


@pytest.mark.parametrize("when", ["always", "context"])
def test_a_question_longer_than_a_window(when: str, tokenizer: Tokenizer) -> None:
    """Nothing is predicted in its first window, so that is slept over like the context's."""
    context = "The window is full."
    sleep = SleepConfig(window=L, passes=3, when=when, coda=1)  # type: ignore[arg-type]
    model = build(sleep, replace(MODEL, vocab_size=tokenizer.vocab_size))
    for question in (L - 1, L, L + 1, 2 * L + 3):
        asked = draw(question)
        ids = torch.cat([torch.tensor(tokenizer.encode(context)), asked])
        (said,) = continue_text(
            Decoder(model), tokenizer, asked.tolist(), Sampling(), context=context
        )
        expected = answers(model, row(ids, question, scored=1))[-1]
        torch.testing.assert_close(said.logits, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("empty", [0, 2])
def test_with_a_stop_rule(empty: int) -> None:
    """No passes over windows of PAD are counted."""
    ids = draw(CONTEXT + QUESTION)
    model = build(SleepConfig(window=L, passes=8, when="context"))
    stop = StopRule(0.3)
    expected = answers(model, row(ids, empty=empty), stop)
    session = Session(Decoder(model), until=0.3)
    session.read_context(ids[:CONTEXT])
    torch.testing.assert_close(
        session.read(ids[CONTEXT:], every=True), expected, atol=1e-6, rtol=1e-6
    )
    made = torch.cat(stop.made)
    assert session.sleep_passes == int((made - 1).sum()) < 3 * 7
    assert stop.means() == {
        "passes_made": pytest.approx(float(made.double().mean())),
        "passes_of_batches": pytest.approx(session.sleep_passes / 3 + 1),
    }


def test_what_was_read_before_is_slept_over_first() -> None:
    """A context after a part of a window: the part is a window of its own."""
    ids = draw(2 + L + 1)
    decoder = Decoder(build(SleepConfig(window=L, passes=3)))
    one, other = Session(decoder), Session(decoder)
    for session in (one, other):
        session.read(ids[:2])
    one.read_context(ids[2:-1])
    other.end_window()
    other.read(ids[2:-1])
    torch.testing.assert_close(one.read(ids[-1:]), other.read(ids[-1:]))
    assert one.slept == other.slept == 2
