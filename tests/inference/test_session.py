"""A session computes, token by token, what training computes window by window."""

from __future__ import annotations

import itertools

import pytest
import torch

from pretrain.config.schema import ModelConfig, SleepConfig
from pretrain.data.batch import IGNORE, Batch
from pretrain.inference.session import Session
from pretrain.model.plan import WindowPlan
from pretrain.model.sleep import SleepLM

L, W, ROWS, VOCAB = 6, 3, 2, 40


def make_model(**settings: object) -> SleepLM:
    config = ModelConfig(
        d_model=32, layers=["attention", "delta", "attention", "delta"],
        attention_heads=2, attention_kv_heads=1, attention_head_dim=16,
        delta_key_heads=1, delta_value_heads=2, delta_key_dim=8, delta_value_dim=16,
        mlp_width=48, vocab_size=VOCAB,
        embedding_std=1.0, init_std=0.2, head_std=0.2, decay_init=(1e-4, 1e-2),
    )  # fmt: skip
    return SleepLM(config, SleepConfig(window=L, **settings)).initialize(3)  # type: ignore[arg-type]


def make_batch(context: int) -> Batch:
    """ROWS sequences whose first `context` tokens carry no target."""
    tokens = torch.randint(0, VOCAB, (ROWS, L * W), generator=torch.Generator().manual_seed(5))
    targets = tokens.roll(-1, 1)
    targets[:, :context] = IGNORE
    starts = torch.tensor([[True] + [False] * (W - 1)] * ROWS)
    return Batch(
        tokens, targets, torch.ones_like(tokens, dtype=torch.bool), starts, torch.zeros(ROWS).bool()
    )


def training_logits(model: SleepLM, batch: Batch) -> dict[int, torch.Tensor]:
    """Position -> logits [ROWS, VOCAB] of every scored position, from the training forward."""
    logits: dict[int, torch.Tensor] = {}

    def head(plan: WindowPlan, y: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        said = model.logits(y).view(ROWS, -1, VOCAB)
        logits.update(
            {plan.tokens.stop - said.shape[1] + t: said[:, t] for t in range(said.shape[1])}
        )
        return model.losses(y, goal)

    with torch.no_grad():
        model(batch, head=head)
    return logits


CASES = list(itertools.product(("hard", "sliding"), (0, 1), (1, 3)))


@pytest.mark.parametrize(("eviction", "ends", "passes"), CASES)
def test_decoding_equals_training(eviction: str, ends: int, passes: int) -> None:
    model = make_model(passes=passes, when="always", eviction=eviction, prelude=ends, coda=ends)
    batch = make_batch(context=0)
    expected = training_logits(model, batch)
    session = Session(model, rows=ROWS)
    for t in range(L * W):
        got = session.read(batch.tokens[:, t : t + 1])
        assert got is not None
        torch.testing.assert_close(got, expected[t], atol=2e-5, rtol=1e-4)
    assert session.slept == W  # full windows, the last one too: more may come


@pytest.mark.parametrize(("eviction", "ends", "passes"), CASES)
def test_reading_a_context_and_answering(eviction: str, ends: int, passes: int) -> None:
    """With sleep.when = "context" the context windows sleep and the answer's window does not."""
    model = make_model(passes=passes, when="context", eviction=eviction, prelude=ends, coda=ends)
    batch = make_batch(context=2 * L)
    expected = training_logits(model, batch)
    session = Session(model, rows=ROWS)
    session.read(batch.tokens[:, :9], predicts=False)  # pieces that do not end with the window
    session.read(batch.tokens[:, 9 : 2 * L], predicts=False)
    assert session.slept == 2
    for t in range(2 * L, 3 * L):
        got = session.read(batch.tokens[:, t : t + 1])
        assert got is not None
        torch.testing.assert_close(got, expected[t], atol=2e-5, rtol=1e-4)
    assert session.slept == 2


def test_the_number_of_passes_changes_what_is_said() -> None:
    model = make_model(passes=3, when="always")
    said = []
    for passes in (1, 3):
        session = Session(model, passes=passes)
        said.append(session.read(make_batch(0).tokens[:1]))
    assert (said[0] - said[1]).abs().max() > 1e-3


def test_memory_does_not_grow_with_what_was_read() -> None:
    for eviction, keys in (("hard", 0), ("sliding", L - 1)):
        session = Session(make_model(passes=2, eviction=eviction))
        sizes = set()
        for _ in range(4):
            session.read(torch.zeros(1, 2 * L, dtype=torch.int64))
            sizes.add(tuple(tuple(t.shape) for t in session.memory.state.named_tensors().values()))
        assert len(sizes) == 1
        assert session.memory.state.attendable.shape[1] == keys


def test_sampling_is_reproducible_and_stops() -> None:
    model = make_model(passes=2)

    def text(temperature: float, seed: int, stop: int | None = None) -> list[int]:
        session = Session(model)
        logits = session.read(torch.tensor([[1, 2, 3]]))
        assert logits is not None
        return list(session.generate(logits, 20, temperature, seed, stop))

    assert text(1.0, 0) == text(1.0, 0) != text(1.0, 1)
    assert text(0.0, 0) == text(0.0, 1)
    greedy = text(0.0, 0)
    assert text(0.0, 0, stop=greedy[4]) == greedy[: greedy.index(greedy[4])]


def test_a_padded_vocabulary_is_never_sampled() -> None:
    session = Session(make_model(passes=1))
    logits = session.read(torch.tensor([[1, 2, 3]]))
    assert logits is not None
    assert max(session.generate(logits, 40, temperature=5.0, seed=0, vocab_size=3)) < 3
