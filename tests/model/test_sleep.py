"""The sleep loop against the oracle on transformers: the loss and the gradient of every parameter,
in fp64.
"""

import itertools

import pytest
import torch
from torch import Tensor

from pretrain.data.batch import Batch
from pretrain.model.sleep import SleepLM
from tests.marks import slow
from tests.model.tiny import L, assert_like_oracle, build, change, gradients, oracle, sequences
from tests.oracles import qwen
from tests.oracles.sleep import read


@pytest.mark.parametrize("eviction", ["hard", "sliding"])
@pytest.mark.parametrize("passes", [1, 2, 3])
def test_always(passes: int, eviction: str) -> None:
    """Pretraining on text: every window is predicted awake, then consolidated. The last one is
    shorter.
    """
    assert_like_oracle(build(change(passes=passes, eviction=eviction)), sequences(3 * L + 2))


@pytest.mark.parametrize("eviction", ["hard", "sliding"])
@pytest.mark.parametrize("passes", [1, 2, 3])
def test_context(passes: int, eviction: str) -> None:
    """Algorithm 1: two windows are consolidated, then one is predicted."""
    batch = sequences(3 * L, unscored={0: [0, 1], 1: [0, 1]})
    assert_like_oracle(build(change(passes=passes, eviction=eviction, when="context")), batch)


@pytest.mark.parametrize("when", ["context", "always"])
@pytest.mark.parametrize("eviction", ["hard", "sliding"])
@pytest.mark.parametrize("prelude, coda", [(0, 0), slow(0, 1), (1, 2)])
def test_rows_that_differ_in_what_they_predict(
    when: str, eviction: str, prelude: int, coda: int
) -> None:
    """Each row sleeps, scores and runs its coda by its own targets."""
    batch = sequences(4 * L - 1, rows=3, unscored={0: [0, 2], 1: [1, 2], 2: [0, 2, 3]})
    sleep = change(passes=3, when=when, eviction=eviction, prelude=prelude, coda=coda)
    assert_like_oracle(build(sleep), batch)


@pytest.mark.parametrize("prelude, coda", [(1, 0), (0, 1), (2, 1), (1, 3)])
def test_prelude_and_coda(prelude: int, coda: int) -> None:
    """Blocks outside the loop run once per window, and delta blocks among them keep their memory
    too.
    """
    batch = sequences(3 * L, unscored={0: [1]})
    for when in ("always", "context"):
        assert_like_oracle(build(change(passes=3, when=when, prelude=prelude, coda=coda)), batch)


@torch.no_grad()
def test_the_number_of_passes_matters() -> None:
    """If N had no effect, every other comparison here would be empty. Slow decays preserve the
    effect.
    """
    for when, unscored in (("always", {}), ("context", {0: [0, 1], 1: [0, 1]})):
        model, batch = build(change(when=when)), sequences(3 * L, unscored=unscored)
        predicted = [last_window_losses(model, batch, passes) for passes in (1, 2, 3, 4)]
        for a, b in itertools.combinations(predicted, 2):
            assert (a - b).abs().mean() > 0.01, when


def last_window_losses(model: SleepLM, batch: Batch, passes: int) -> Tensor:
    """Cross-entropy of each token of the last window, in nats."""
    seen = []
    model(
        batch,
        passes=passes,
        head=lambda _plan, y, goal: seen.append(model.losses(y, goal)) or seen[-1],
    )
    return seen[-1]


def test_passes_of_a_call_override_the_configuration() -> None:
    model, batch = build(change(passes=2)), sequences(3 * L)
    assert torch.equal(model(batch, passes=3).loss, build(change(passes=3))(batch).loss)


@pytest.mark.parametrize("passes, k", [(2, 1), (3, 1), slow(3, 2), (3, 3), slow(3, 7)])
@pytest.mark.parametrize(
    "when, prelude, coda, eviction",
    [
        ("context", 0, 0, "hard"),
        ("always", 1, 1, "sliding"),
        slow("always", 0, 0, "hard"),
        slow("context", 1, 1, "sliding"),
    ],
)
def test_truncated_passes(
    passes: int, k: int, when: str, prelude: int, coda: int, eviction: str
) -> None:
    """Before the last k passes, h and the core's memory are detached, but not from the wake pass's
    own loss.
    """
    batch = sequences(4 * L, unscored={0: [0, 2], 1: [0, 1]})
    sleep = change(passes=passes, when=when, prelude=prelude, coda=coda, eviction=eviction)
    compare(build(sleep), build(change(sleep, truncate_passes=k)), batch, whole=k >= passes)


def compare(full: SleepLM, truncated: SleepLM, batch: Batch, whole: bool) -> None:
    """Truncation keeps the loss, and all equals the oracle. whole: nothing was cut off."""
    loss, found = assert_like_oracle(truncated, batch)
    expected = full(batch).loss
    assert torch.equal(loss, expected)
    name = "blocks.1.mixer.k.weight"
    assert torch.equal(found[name], gradients(full, expected)[name]) == whole


@pytest.mark.parametrize("eviction", ["hard", "sliding"])
@pytest.mark.parametrize("j", [1, 2, slow(3), 5])
def test_truncated_windows(j: int, eviction: str) -> None:
    """S (and kept keys and values) is detached at every j-th boundary, counted from the sequence's
    end.
    """
    batch = sequences(5 * L, unscored={0: [0], 1: [0, 4]})
    full = build(change(eviction=eviction))
    truncated = build(change(eviction=eviction, truncate_windows=j))
    compare(full, truncated, batch, whole=j >= 5)


def test_truncation_is_off_by_default() -> None:
    assert change().truncate_passes == change().truncate_windows == 0


@pytest.mark.parametrize("eviction", ["hard", "sliding"])
def test_in_fp32(eviction: str) -> None:
    model = build(change(passes=3, eviction=eviction), dtype=torch.float32)
    assert_like_oracle(model, sequences(3 * L), tolerance=1e-5)


def test_the_oracle_itself_by_finite_differences() -> None:
    """Its gradient flows through a transformers cache, which was not made for that."""
    model, batch = build(change(passes=3)), sequences(3 * L, rows=1)
    other = qwen.from_hybrid(model)
    _, expected = oracle(model, batch)
    for name in ("blocks.1.mixer.A_log", "blocks.1.mixer.k.weight", "blocks.0.mixer.q.weight"):
        data = dict(other.named_parameters())
        view = qwen.by_our_names(model.config, lambda n, data=data: data[n].data)[name]
        direction = torch.randn(
            view.shape, generator=torch.Generator().manual_seed(1), dtype=view.dtype
        )
        losses = []
        for step in (1e-6, -1e-6):
            view.add_(step * direction)
            losses.append(read(other, batch, model.sleep)[0].sum().item())
            view.sub_(step * direction)
        slope = (losses[0] - losses[1]) / 2e-6
        assert slope == pytest.approx(
            float((expected[name].view(view.shape) * direction).sum()), rel=1e-6
        ), name
