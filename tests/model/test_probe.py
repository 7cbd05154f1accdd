"""The numbers that a logging step reports, against the states they describe."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from parallel.state import DeltaState
from pretrain.model.probe import Probe
from tests.model.tiny import L, build, change, equal, gradients, sequences


def test_norms_of_a_window_by_pass() -> None:
    """What pass n writes is the difference between the states after n and n - 1 passes."""
    model, batch = build(), sequences(L)
    batch.carries[:] = True
    S = [fast_weights(model(batch, passes=n).state) for n in (1, 2, 3)]
    probe = Probe()
    model(batch, passes=3, probe=probe)
    summary = probe.summary(model)
    written = [S[0].norm(), (S[1] - S[0]).norm(), (S[2] - S[1]).norm()]
    assert summary["update_norm_per_pass"] == pytest.approx([n.item() for n in written])
    assert summary["state_norm"] == pytest.approx(S[2].norm().item())


def fast_weights(state) -> Tensor:
    return torch.cat([b.S.flatten() for b in state.blocks if isinstance(b, DeltaState)])


@torch.no_grad()
def test_retention_is_the_product_of_decays_over_a_window() -> None:
    """With alpha = 0 every token's decay is exp(-exp(A_log) * softplus(dt_bias))."""
    model = build()
    mixers = [model.blocks["1"].mixer, model.blocks["3"].mixer]
    for mixer in mixers:
        mixer.alpha.weight.zero_()
    probe = Probe()
    model(sequences(3 * L), probe=probe)
    kept = torch.stack([(-m.A_log.exp() * F.softplus(m.dt_bias) * L).exp() for m in mixers])
    summary = probe.summary(model)
    assert summary["retention"] == pytest.approx(kept.mean().item())
    for heads, expected in zip(summary["retention_per_head"], kept.tolist(), strict=True):
        assert heads == pytest.approx(expected)


@pytest.mark.parametrize("policy", ("none", "unit", "block"))
def test_looking_changes_nothing(policy: str) -> None:
    """Same loss and gradients; and the same numbers whatever is recomputed in backward."""
    model, batch = build(change(passes=3)), sequences(3 * L)
    plain, reference = model(batch), Probe()
    expected = gradients(model, plain.loss)
    gradients(model, model(batch, probe=reference).loss)
    probe = Probe()
    out = model(batch, recompute=policy, probe=probe)
    assert torch.equal(out.loss, plain.loss)
    assert equal(gradients(model, out.loss), expected)
    assert probe.summary(model) == reference.summary(model)


def test_gradient_by_pass_shows_where_backpropagation_ends() -> None:
    """One window consolidated in four passes, one predicted: truncated to the last two passes, the
    first two get no gradient.
    """
    batch = sequences(2 * L, unscored={0: [0], 1: [0]})
    norms = {}
    for k in (0, 2):
        model, probe = build(change(passes=4, when="context", truncate_passes=k)), Probe()
        gradients(model, model(batch, probe=probe).loss)
        norms[k] = probe.summary(model)["grad_norm_per_pass"]
    assert all(norm > 0 for norm in norms[0])
    assert [norm > 0 for norm in norms[2]] == [False, False, True, True]
