"""PAD, documents that share a row, rows that share a batch, documents longer than a sequence."""

import pytest
import torch

from parallel.state import DeltaState
from pretrain.config.schema import SleepConfig
from pretrain.data.batch import IGNORE, Batch
from pretrain.model.plan import plan_windows
from pretrain.model.reader import Output
from pretrain.model.sleep import SleepLM
from tests.model.tiny import (
    MODEL,
    SLEEP,
    L,
    assert_like_oracle,
    assert_same,
    build,
    change,
    gradients,
    sequences,
)
from tests.oracles import qwen
from tests.oracles.sleep import read

SETTINGS = [
    change(passes=3),
    change(passes=3, eviction="sliding"),
    change(passes=2, when="context", prelude=1, coda=1),
    change(passes=2, when="context", prelude=1, coda=1, eviction="sliding"),
]


def padded(
    T: int, ends: list[tuple[int, int]], unscored: dict[int, list[int]] | None = None, junk: int = 0
) -> Batch:
    """Rows with real tokens in [start, stop) only; PAD is token `junk` and is not scored."""
    batch = sequences(T, len(ends), unscored)
    for row, (start, stop) in enumerate(ends):
        for outside in (slice(0, start), slice(stop, T)):
            batch.valid[row, outside] = False
            batch.targets[row, outside] = IGNORE
            batch.tokens[row, outside] = junk
    return batch


def join(*batches: Batch) -> Batch:
    """Concatenates each row's sequences."""
    tensors = {
        name: [getattr(b, name) for b in batches]
        for name in ("tokens", "targets", "valid", "starts")
    }
    return Batch(
        **{name: torch.cat(parts, dim=1) for name, parts in tensors.items()},
        carries=batches[-1].carries,
    )


@pytest.mark.parametrize("sleep", SETTINGS)
@pytest.mark.parametrize(
    "ends",
    [
        [(4, 3 * L), (0, 3 * L), (L, 3 * L)],  # left, none, a whole window
        [(0, 2 * L + 1), (0, L - 2), (0, 3 * L)],  # right, in the first window, none
        [(2, 2 * L + 2), (L + 3, L + 4), (5, 6)],  # both, a single token, a single token
    ],
)
def test_pad_is_as_if_it_were_not_there(sleep: SleepConfig, ends: list[tuple[int, int]]) -> None:
    """The oracle reads each row without its PAD, so its positions are shifted: errors of 1e-7 from
    the fp32 rotary table.
    """
    assert_like_oracle(build(sleep), padded(3 * L, ends, {2: [0]}), tolerance=1e-6)


@pytest.mark.parametrize("sleep", [SETTINGS[0], SETTINGS[2]])
def test_pad_at_a_windows_end_writes_nothing(sleep: SleepConfig) -> None:
    """The document continues in the next window, which reads whatever PAD has left in S."""
    batch = sequences(4 * L, unscored={0: [0, 1]})
    for pad in (slice(L - 2, L), slice(2 * L - 4, 2 * L)):
        batch.valid[:, pad] = False
        batch.targets[:, pad] = IGNORE
    assert_like_oracle(build(sleep), batch)


@pytest.mark.parametrize("sleep", SETTINGS)
def test_what_pad_holds_is_irrelevant(sleep: SleepConfig) -> None:
    """Also, no gradient reaches its embedding."""
    ends = [(4, 3 * L), (0, 2 * L + 1)]
    model = build(sleep)
    zeros, junk = (model(padded(3 * L, ends, junk=j)) for j in (0, 7))
    assert torch.equal(zeros.loss, junk.loss)
    assert (gradients(model, zeros.loss)["embed.weight"][0] == 0).all()


@pytest.mark.parametrize("sleep", SETTINGS)
def test_documents_packed_in_one_row_are_two_rows(sleep: SleepConfig) -> None:
    """A document begins at a window with S = 0, and does not attend to the one before."""
    first = padded(2 * L, [(0, L + 4)], {0: [0]})
    second = padded(3 * L, [(0, 3 * L)], {0: [0]})
    model = build(sleep)
    packed = model(join(first, second))
    apart = [model(first), model(second)]
    assert_same({"w": packed.window_loss}, {"w": torch.cat([o.window_loss for o in apart])}, 1e-12)
    alone = gradients(model, apart[0].loss + apart[1].loss)
    assert_same(gradients(model, packed.loss), alone)
    assert_like_oracle(model, join(first, second))


@pytest.mark.parametrize(
    "sleep", [*SETTINGS, change(passes=3, truncate_passes=1, truncate_windows=3)]
)
def test_rows_do_not_see_each_other(sleep: SleepConfig) -> None:
    """Microbatches add up to the batch, whatever each of them scores and pads."""
    T = 4 * L - 1
    batch = padded(
        T, [(0, T), (3, T), (0, 2 * L - 1), (0, 3 * L)], {0: [0, 2], 1: [0, 1], 3: [2, 3]}
    )
    model = build(sleep)
    whole = model(batch)
    parts = [model(batch.rows(0, 1)), model(batch.rows(1, 2)), model(batch.rows(2, 4))]
    assert_same({"w": whole.window_loss}, {"w": sum(o.window_loss for o in parts)}, 1e-12)
    assert_same(gradients(model, whole.loss), gradients(model, sum(o.loss for o in parts)))


@pytest.mark.parametrize("sleep", SETTINGS)
def test_carried_documents(sleep: SleepConfig) -> None:
    """Two sequences of W windows with S carried equal one of 2W; the gradient stops in between."""
    whole = sequences(4 * L, unscored={0: [0, 1], 1: [0, 3]})
    model = build(sleep)
    first, second, out = in_two(model, whole)
    assert_same(
        {"w": torch.cat([first.window_loss, second.window_loss])}, {"w": out.window_loss}, 1e-12
    )
    assert all(not t.requires_grad for t in first.state.named_tensors().values())
    assert second.state is None  # both documents end there

    # The whole sequence has the same gradient if truncated once, between the two sequences.
    cut = build(change(sleep, truncate_windows=2))
    assert_same(gradients(model, first.loss + second.loss), gradients(cut, cut(whole).loss))


def in_two(model: SleepLM, whole: Batch) -> tuple[Output, Output, Output]:
    """The outputs for the whole, and for its halves with the state carried."""
    half = whole.size[1] // 2
    first, second = (
        Batch(
            *(x[:, s] for x in (whole.tokens, whole.targets, whole.valid)),
            whole.starts[:, w],
            torch.tensor([c, c]),
        )
        for s, w, c in (
            (slice(0, half), slice(0, 2), True),
            (slice(half, None), slice(2, 4), False),
        )
    )
    before = model(first)
    return before, model(second, before.state), model(whole)


@pytest.mark.parametrize("sleep", SETTINGS)
def test_carried_memory_is_the_oracles(sleep: SleepConfig) -> None:
    """S, and with sliding eviction the keys and values, after a batch whose last window is scored
    or not.
    """
    model, batch = build(sleep), sequences(3 * L, unscored={0: [0, 2], 1: [1]})
    batch.carries[:] = True
    state = model(batch).state
    _, memories = read(qwen.from_hybrid(model), batch, sleep)
    for row, memory in enumerate(memories):
        ours = {f"S {i}": b.S[row] for i, b in enumerate(state.blocks) if isinstance(b, DeltaState)}
        expected = {f"S {i}": S[0] for i, S in memory.S.items()}
        for i, (k, v) in memory.past.items():
            ours |= {f"k {i}": state.blocks[i].k[row], f"v {i}": state.blocks[i].v[row]}
            expected |= {f"k {i}": k[0], f"v {i}": v[0]}
        assert_same(ours, expected)


def test_a_lane_whose_document_ends_starts_the_next_one_empty() -> None:
    """One row continues, the other starts anew: its old state must not leak through `state`."""
    model = build(change(passes=2, eviction="sliding"))
    first, second = sequences(2 * L), sequences(2 * L)
    first.carries[:] = torch.tensor([True, False])
    second.starts[0, 0] = False
    state = model(first).state
    fresh = model(second.rows(1, 2)).window_loss
    together = model(second, state).window_loss
    alone = model(second.rows(0, 1), state.map(lambda t: t[:1])).window_loss
    assert_same({"w": together}, {"w": fresh + alone}, 1e-12)


def test_a_batch_that_scores_nothing() -> None:
    """No loss, no crash; if a document continues, its state is still updated."""
    model = build(change(when="context"))
    batch = sequences(2 * L, unscored={0: [0, 1], 1: [0, 1]})
    out = model(batch)
    assert out.loss == 0 and out.window_loss.tolist() == [0, 0] and out.state is None
    batch.carries[:] = True
    state = model(batch).state
    assert state is not None and state.position.tolist() == [2 * L, 2 * L]
    assert state.blocks[1].S.abs().sum() > 0
    assert MODEL.layers[1] == "delta"


def test_what_a_document_leaves_behind_at_its_end_is_not_slept_over() -> None:
    """Its S is dropped at the next window, so only rows whose document continues do passes 2..N."""
    batch = sequences(4 * L, rows=2)
    batch.starts[0, 2] = batch.starts[1, 3] = True
    assert [p.sleeps.tolist() for p in plan_windows(batch, SLEEP)] == [
        [True, True], [False, True], [True, False], [False, False],
    ]  # fmt: skip
    assert_like_oracle(build(), batch)
