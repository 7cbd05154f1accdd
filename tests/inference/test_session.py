"""A session computes, token by token, what training computes window by window."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.config.schema import SleepConfig
from pretrain.data.batch import IGNORE, Batch
from pretrain.errors import UserError
from pretrain.inference.decode import Decoder
from pretrain.inference.session import Session, SleepOwed, read_together
from pretrain.model.plan import WindowPlan
from pretrain.model.sleep import SleepLM
from tests.model.tiny import MODEL, build

L, W, ROWS = 6, 4, 3
VOCAB = MODEL.vocab_size


def make_decoder(dtype: torch.dtype = torch.float32, **settings: object) -> Decoder:
    """Every parameter matters; decays are slow, otherwise sleep would change nothing."""
    return Decoder(build(SleepConfig(window=L, **settings), dtype=dtype))  # type: ignore[arg-type]


def make_batch(tokens: int = L * W) -> Batch:
    """A batch of ROWS sequences."""
    ids = torch.randint(0, VOCAB, (ROWS, tokens), generator=torch.Generator().manual_seed(5))
    targets = ids.roll(-1, 1)
    starts = torch.tensor([[True] + [False] * (-(-tokens // L) - 1)] * ROWS)
    valid, carries = torch.ones_like(ids, dtype=torch.bool), torch.zeros(ROWS).bool()
    return Batch(ids, targets, valid, starts, carries)


def training_logits(model: SleepLM, batch: Batch) -> dict[int, Tensor]:
    """Position -> logits [ROWS, VOCAB] of every scored position, from the training forward."""
    logits: dict[int, Tensor] = {}

    def head(plan: WindowPlan, y: Tensor, targets: Tensor) -> Tensor:
        said = model.logits(y).view(ROWS, -1, VOCAB)
        start = plan.tokens.stop - said.shape[1]
        logits.update({start + t: said[:, t] for t in range(said.shape[1])})
        return model.losses(y, targets)

    with torch.no_grad():
        model(batch, head=head)
    return logits


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"delta_negative_eigenvalues": True},
        {"attention_qkv_bias": True, "attention_qk_norm": False},
        {"tie_embeddings": True, "layers": ["delta", "delta", "delta", "attention"]},
        {"attention_kv_heads": 4, "rotary_fraction": 1.0, "delta_conv_width": 2},
    ],
)
def test_other_shapes_token_by_token(change: dict[str, Any]) -> None:
    config = dataclasses.replace(MODEL, **change)
    decoder = Decoder(build(SleepConfig(window=L, passes=3), config, torch.float32))
    batch = make_batch()
    expected = training_logits(decoder.model, batch)
    session = Session(decoder)
    for t in range(L * W):
        close(session.read(batch.tokens[0, t : t + 1]), expected[t][0])
    other = training_logits(build(SleepConfig(window=L, passes=3), dtype=torch.float32), batch)
    assert not torch.allclose(other[L * W - 1], expected[L * W - 1], atol=1e-2)


def test_attention_prepares_nothing_for_each_number_of_keys() -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    make_decoder()
    assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize("together", [False, True])
def test_in_bf16_it_errs_as_training_in_bf16_does(together: bool) -> None:
    batch = make_batch()
    exact, trained = (
        torch.stack(list(training_logits(make_decoder(dtype, passes=3).model, batch).values()))[
            :, 0
        ]
        for dtype in (torch.float64, torch.bfloat16)
    )
    decoder = make_decoder(torch.bfloat16, passes=3)
    others = [Session(decoder)] if together else []
    session, said = Session(decoder), []
    for token in batch.tokens[0].tolist():
        said.append(read_together([session, *others], [token] * (1 + len(others)))[0])
        for each in (session, *others):
            each.sleep()
    error, allowed = (float((x.double() - exact).norm()) for x in (torch.stack(said), trained))
    assert error < 1.5 * allowed
    memory = session.memory
    assert {t.dtype for t in memory.named_tensors().values()} == {torch.bfloat16, torch.float32}
    assert all(block.S.dtype == torch.float32 for block in memory.blocks if hasattr(block, "S"))


@pytest.mark.parametrize("passes", [1, 3])
def test_a_window_that_ends_early_is_one_with_pad_at_its_end(passes: int) -> None:
    decoder, batch = make_decoder(passes=passes, prelude=1, coda=1), make_batch(tokens=2 * L)
    batch.valid[:, 4:L] = False
    batch.targets[:, 4:L] = IGNORE
    expected: list[Tensor] = []

    def head(plan: WindowPlan, y: Tensor, targets: Tensor) -> Tensor:
        expected.append(decoder.model.logits(y))
        return decoder.model.losses(y, targets)

    with torch.no_grad():
        decoder.model(batch, head=head)
    session = Session(decoder)
    session.read(batch.tokens[0, :4])
    session.end_window()
    close(session.read(batch.tokens[0, L:], every=True), expected[1][:L])
    assert session.position == 4 + L


@pytest.mark.parametrize("control", [{"when": "awake"}, {"carries": "h"}, {"eviction": "none"}])
def test_controls_have_no_sessions(control: dict[str, str]) -> None:
    with pytest.raises(UserError, match="it can be evaluated, but cannot generate"):
        make_decoder(**control)


CASES = list(itertools.product(("hard", "sliding"), (0, 1), (1, 3)))


@pytest.mark.parametrize(("eviction", "ends", "passes"), CASES)
def test_tokens_one_by_one_or_together_equal_training(
    eviction: str, ends: int, passes: int
) -> None:
    decoder = make_decoder(passes=passes, eviction=eviction, prelude=ends, coda=ends)
    batch = make_batch()
    expected = training_logits(decoder.model, batch)
    alone, every = Session(decoder), Session(decoder)
    together = [Session(decoder) for _ in range(ROWS)]
    for t in range(L * W):
        close(alone.read(batch.tokens[0, t : t + 1]), expected[t][0])
        for session in together:
            session.sleep()
        close(read_together(together, batch.tokens[:, t].tolist()), expected[t])
    close(every.read(batch.tokens[0], every=True), torch.stack([expected[t][0] for t in expected]))
    for session in (alone, every, together[0]):
        session.sleep()
        assert (session.slept, session.position, session.filled) == (W, L * W, 0)


def test_ragged_sessions_read_together_as_each_alone() -> None:
    """With different lengths, differently filled windows, and different N."""
    for eviction in ("hard", "sliding"):
        decoder, batch = make_decoder(eviction=eviction, coda=1), make_batch()
        lengths = (1, 9, 14)
        sessions = [Session(decoder, passes) for passes in (1, 2, 4)]
        for session, row, length in zip(sessions, batch.tokens, lengths, strict=True):
            session.read(row[:length])
        apart = [session.fork() for session in sessions]
        for step in range(8):
            tokens = [int(row[n + step]) for row, n in zip(batch.tokens, lengths, strict=True)]
            for session in sessions:
                session.sleep()
            said = read_together(sessions, tokens)
            for row, (session, token) in enumerate(zip(apart, tokens, strict=True)):
                close(said[row], session.read([token]))
        assert {session.filled for session in sessions} == {3, 5, 4}


@pytest.mark.parametrize("eviction", ["hard", "sliding"])
def test_a_sleep_at_once_a_pass_at_a_time_or_in_the_background(eviction: str) -> None:
    decoder, batch = make_decoder(passes=4, eviction=eviction, prelude=1, coda=1), make_batch()
    first = Session(decoder)
    first.read(batch.tokens[0, : 2 * L])
    assert first.pending == 3 and first.slept == 1
    with pytest.raises(SleepOwed, match="3 passes must be made"):
        read_together([first], [1])
    other, stepwise, background = Session(decoder), first.fork(), first.fork()
    first.sleep()
    for owed in (3, 2, 1):
        assert stepwise.pending == owed
        read_together([other], [owed])  # others continue meanwhile
        stepwise = stepwise.fork()  # also in the middle of a sleep
        stepwise.sleep_pass()
    background.sleep_in_background()
    said = [session.read([7]) for session in (first, stepwise, background)]
    assert all(torch.equal(said[0], each) for each in said)
    with pytest.raises(ValueError, match="no sleep is owed"):
        first.sleep_pass()


def test_n_is_chosen_at_any_time_and_matters() -> None:
    decoder, batch = make_decoder(passes=2), make_batch()
    start, said = Session(decoder), {}
    start.read(batch.tokens[0, :L])
    for passes in (1, 2, 4):
        session = start.fork()
        session.passes = passes  # the window is already full
        assert session.pending == passes - 1
        said[passes] = session.read(batch.tokens[0, L : L + 2])
    assert (said[1] - said[2]).abs().max() > 1e-3 < (said[2] - said[4]).abs().max()
    start.sleep_pass()  # the only one at N = 2: the window is then forgotten
    start.passes = 5
    start.read(batch.tokens[0, L : 2 * L])
    start.sleep_pass()
    with pytest.raises(ValueError, match="2 of 5 passes are done"):
        start.passes = 3


def test_a_fork_goes_on_by_itself() -> None:
    decoder, batch = make_decoder(eviction="sliding"), make_batch()
    one = Session(decoder)
    one.read(batch.tokens[0, :8])
    two = one.fork()
    one.read(batch.tokens[1])
    three = Session(decoder)
    three.read(batch.tokens[0, :8])
    assert torch.equal(two.read([3]), three.read([3]))
    assert two.seen.sum() < one.seen.sum()


def test_memory_does_not_grow_with_what_was_read() -> None:
    for eviction, keys in (("hard", L), ("sliding", 2 * L - 1)):
        session, sizes = Session(make_decoder(eviction=eviction)), set()
        for _ in range(4):
            session.read([0] * (2 * L))
            sizes.add(session.memory.nbytes)
        (kept,) = {block.k.shape[2] for block in session.memory.blocks if hasattr(block, "k")}
        assert len(sizes) == 1 and kept == keys


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("bfloat16", 5e-2)])
def test_in_double_a_token_is_exact_and_in_half_near(dtype: str, tolerance: float) -> None:
    """The mathematics implemented twice, for decoding and in parallel/, is the same."""
    decoder = make_decoder(dtype=getattr(torch, dtype), eviction="sliding")
    batch, session = make_batch(), Session(decoder)
    expected = training_logits(decoder.model, batch)
    for t in range(L * W):
        said = session.read(batch.tokens[0, t : t + 1])
        torch.testing.assert_close(said, expected[t][0], atol=tolerance, rtol=tolerance)


def test_what_cannot_be_read_is_refused() -> None:
    session = Session(make_decoder())
    for tokens in ([], [VOCAB], [-1]):
        with pytest.raises(ValueError, match=r"at least one token, with ids 0\.\.22"):
            session.read(tokens)
    with pytest.raises(ValueError, match="N counts the wake pass"):
        session.passes = 0
