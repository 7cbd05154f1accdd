"""Every form of the gated delta rule against the paper's equations and against transformers."""

import pytest
import torch
from torch import Tensor

from parallel.delta_merge import merged_delta_rule
from parallel.delta_rule import chunked_delta_rule, delta_rule, recurrent_delta_rule
from tests.oracles.delta_rule import NAMES, naive, transformers_chunked, transformers_recurrent

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def inputs(
    T: int, dtype: torch.dtype, key_heads: int = 1, heads: int = 2, K: int = 5, V: int = 3
) -> list[Tensor]:
    """q, k, v, log_decay, beta and S, with slow and fast heads and a non-zero state."""
    g = torch.Generator().manual_seed(T)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    q, k = (torch.nn.functional.normalize(draw(2, T, key_heads, K), dim=-1) for _ in range(2))
    rates = torch.logspace(-3, 0, heads, dtype=torch.float64)  # from a thousand tokens to one
    log_decay = -rates * draw(2, T, heads).abs()
    beta = torch.sigmoid(draw(2, T, heads))
    tensors = [q, k, draw(2, T, heads, V), log_decay, beta, draw(2, heads, K, V)]
    return [x.to(dtype).requires_grad_() for x in tensors]


def outcome(rule, tensors: list[Tensor], **options) -> dict[str, Tensor]:
    """Output, final state, and the gradients of a loss that weights both unevenly."""
    o, S = rule(*tensors, **options)
    g = torch.Generator().manual_seed(0)
    weigh_o, weigh_S = (
        torch.randn(x.shape, generator=g, dtype=torch.float64).to(x.dtype) for x in (o, S)
    )
    gradients = torch.autograd.grad((o * weigh_o).sum() + (S * weigh_S).sum(), tensors)
    return {"o": o.detach(), "S'": S.detach()} | {
        f"d/d{n}": x for n, x in zip(NAMES, gradients, strict=True)
    }


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """By the largest difference, relative to the largest entry if that is above one."""
    for name, want in expected.items():
        got, want = actual[name].double(), want.double()
        assert got.isfinite().all(), name
        error = (got - want).abs().max() / want.abs().max().clamp(min=1)
        assert error < tolerance, f"{name}: {error:.1e}"


@pytest.mark.parametrize("T", [1, 2, 15, 64, 65, 130])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_every_form_is_the_papers_recurrence(T: int, dtype: torch.dtype) -> None:
    tensors = inputs(T, dtype)
    expected = outcome(naive, [x.detach().double().requires_grad_() for x in tensors])
    forms = {
        "chunks of 64": outcome(chunked_delta_rule, tensors),
        "chunks of 16": outcome(chunked_delta_rule, tensors, chunk=16),
        "chunks of 7": outcome(chunked_delta_rule, tensors, chunk=7),
        "a map of S, merged": outcome(merged_delta_rule, tensors, chunk=16),
        "recurrent": outcome(recurrent_delta_rule, tensors),
        "dispatch": outcome(delta_rule, tensors),
        "transformers, chunked": outcome(transformers_chunked, tensors),
        "transformers, recurrent": outcome(transformers_recurrent, tensors),
    }
    for form in forms.values():
        assert_close(form, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_key_heads_serve_consecutive_value_heads(key_heads: int) -> None:
    tensors = inputs(11, torch.float64, key_heads, heads=4)
    expected = outcome(naive, tensors)
    assert_close(outcome(chunked_delta_rule, tensors, chunk=4), expected, 1e-10)
    assert_close(outcome(recurrent_delta_rule, tensors), expected, 1e-10)


def test_finite_differences() -> None:
    """Through the chunks and into the state: a check without another implementation."""
    tensors = inputs(7, torch.float64, K=3, V=2)
    assert torch.autograd.gradcheck(lambda *x: chunked_delta_rule(*x, chunk=3), tensors)


@pytest.mark.parametrize("rule", [chunked_delta_rule, recurrent_delta_rule, delta_rule])
def test_state_cut_anywhere_is_the_same_sequence(rule) -> None:
    """S goes from one call into the next, with the gradient through the cut."""
    tensors = inputs(21, torch.float64)

    def in_two(*x: Tensor) -> tuple[Tensor, Tensor]:
        first, S = rule(*(t[:, :8] for t in x[:5]), x[5])
        second, S = rule(*(t[:, 8:] for t in x[:5]), S)
        return torch.cat([first, second], dim=1), S

    assert_close(outcome(in_two, tensors), outcome(naive, tensors), 1e-10)


@pytest.mark.parametrize("rule", [chunked_delta_rule, recurrent_delta_rule])
def test_without_queries_the_same_state_is_written(rule) -> None:
    tensors = inputs(13, torch.float64)
    o, S = rule(None, *tensors[1:])
    assert o is None
    assert torch.equal(S, rule(*tensors)[1])


@pytest.mark.parametrize("log_decay", [0.0, -50.0, "alternating"])
def test_extreme_decays_stay_finite(log_decay: float | str) -> None:
    """-50 per token is e^-3200 over a chunk of 64; the masked exponentials must not become inf, nor
    inf * 0.
    """
    q, k, v, g, beta, S = inputs(130, torch.float32)
    if log_decay == "alternating":
        extreme = torch.zeros_like(g)
        extreme[:, ::2] = -50.0
    else:
        extreme = torch.full_like(g, float(log_decay))
    tensors = [q, k, v, extreme.requires_grad_(), beta, S]
    expected = outcome(naive, [x.detach().double().requires_grad_() for x in tensors])
    assert_close(outcome(chunked_delta_rule, tensors), expected, 1e-5)
    assert_close(outcome(recurrent_delta_rule, tensors), expected, 1e-5)


def test_one_key_written_again_and_again() -> None:
    """The worst triangular system: all keys of a chunk are the same, nothing decays and nearly
    everything is overwritten.
    """
    q, k, v, g, beta, S = inputs(130, torch.float32)
    same = k[:, :1].expand_as(k).detach().clone().requires_grad_()
    tensors = [
        q,
        same,
        v,
        torch.zeros_like(g).requires_grad_(),
        torch.full_like(beta, 0.999).requires_grad_(),
        S,
    ]
    expected = outcome(naive, [x.detach().double().requires_grad_() for x in tensors])
    assert_close(outcome(chunked_delta_rule, tensors), expected, 1e-5)


def test_bf16_inputs_keep_an_fp32_state() -> None:
    """On the same rounded inputs, bf16 differs from exact arithmetic only by the outputs' own
    rounding.
    """
    *streams, S = inputs(130, torch.float32)
    rounded = [x.detach().bfloat16().requires_grad_() for x in streams] + [S]
    expected = outcome(naive, [x.detach().double().requires_grad_() for x in rounded])
    for rule in (chunked_delta_rule, recurrent_delta_rule):
        got = outcome(rule, rounded)
        assert (
            got["o"].dtype == torch.bfloat16
            and got["S'"].dtype == got["d/dS"].dtype == torch.float32
        )
        assert_close({n: got[n] for n in ("S'",)}, {n: expected[n] for n in ("S'",)}, 1e-5)
        assert_close(got, expected, 2**-6)
