"""What crosses a window boundary, compared with models without sleep."""

import pytest
import torch
import torch.nn.functional as F

from parallel.state import AttentionState, DeltaState
from parallel.window import open_window
from pretrain.data.batch import IGNORE
from tests.model.tiny import L, assert_same, build, change, equal, gradients, sequences
from tests.oracles import qwen
from tests.oracles.double import in_double
from tests.oracles.sleep import Memory


@pytest.mark.parametrize(
    "when, unscored", [("always", {}), ("context", {0: [1]}), ("context", {0: [1], 1: [1]})]
)
def test_one_pass_is_the_plain_chunked_hybrid_bit_for_bit(
    when: str, unscored: dict[int, list[int]]
) -> None:
    """Blocks called one after the other with only S passed on: no loop, no passes, no plan."""
    model = build(change(passes=1, when=when), dtype=torch.float32)
    batch = sequences(4 * L - 2, unscored=unscored)
    out = model(batch)

    S = {
        i: block.empty_state(2, torch.device("cpu"), torch.float32)
        for i, block in enumerate(model.blocks.values())
    }
    loss = torch.zeros(())
    for w in range(4):
        tokens, targets, valid = (
            x[:, w * L : (w + 1) * L] for x in (batch.tokens, batch.targets, batch.valid)
        )
        window = open_window(
            model.config, model.empty_state(2), valid, has_pad=False, width=L, sliding=False
        )
        h = model.embed(tokens)
        for i, block in enumerate(model.blocks.values()):
            h, S[i] = block(h, S[i], window)
        if (targets != IGNORE).any():
            scored = targets != IGNORE
            loss = loss + model.losses(h[scored], targets[scored]).sum()
    assert torch.equal(out.loss, loss)
    # otherwise a window is only slept over, and dead compute is skipped: see test_recompute.py
    if len(unscored) < 2:
        assert equal(gradients(model, out.loss), gradients(model, loss))


def test_sliding_with_one_pass_is_the_standard_sliding_window_hybrid() -> None:
    """Compared with layers that run over the whole sequence: attention with one band mask, an
    uninterrupted delta rule.

    Only the short convolutions restart at each window, so each delta layer is run in pieces.
    """
    T = 4 * L + 3
    model, batch = build(change(passes=1, eviction="sliding")), sequences(T)
    other = qwen.from_hybrid(model)
    distance = torch.arange(T)[:, None] - torch.arange(T)
    band = torch.zeros(T, T, dtype=torch.float64).masked_fill(
        (distance < 0) | (distance >= L), -torch.inf
    )
    with in_double():
        h = other.model.embed_tokens(batch.tokens)
        angles = other.model.rotary_emb(h, torch.arange(T)[None])
        for layer in other.model.layers:
            if layer.block_type == "full_attention":
                h = layer(h, position_embeddings=angles, attention_mask=band[None, None])
            else:
                memory = Memory()
                pieces = [
                    layer(x, None, None, None, memory)  # by position: its name has changed
                    for x in h.split(L, dim=1)
                ]
                h = torch.cat(pieces, dim=1)
        logits = other.lm_head(other.model.norm(h))
    loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="sum")
    loss.backward()
    out = model(batch)
    assert_same({"loss": out.loss}, {"loss": loss})
    assert_same(gradients(model, out.loss), qwen.gradients(other, model.config))
    # hard eviction gives another result
    assert (out.loss - build(change(passes=1))(batch).loss).abs() > 1e-2


def test_sliding_over_a_short_sequence_is_full_attention() -> None:
    """A band wider than the sequence hides nothing: one window of L and one of T agree."""
    batch = sequences(L)
    sliding, hard = build(change(passes=3, eviction="sliding")), build(change(passes=3))
    assert_same({"loss": sliding(batch).loss}, {"loss": hard(batch).loss}, 1e-12)


@torch.no_grad()
@pytest.mark.parametrize("eviction, crosses", [("hard", 0), ("sliding", L - 1)])
def test_memory_between_windows(eviction: str, crosses: int) -> None:
    """S in at least fp32, no convolution state, and keys only with sliding eviction."""
    batch = sequences(3 * L)
    batch.carries[:] = True
    state = build(change(eviction=eviction), dtype=torch.bfloat16)(batch).state
    assert state is not None
    assert state.past == state.attendable.shape[1] == crosses
    assert state.position.tolist() == [3 * L, 3 * L]
    for block in state.blocks:
        if isinstance(block, DeltaState):
            assert block.S.dtype == torch.float32
            assert block.tail.shape[1] == 0
        else:
            assert isinstance(block, AttentionState)
            assert block.k.shape[2] == block.v.shape[2] == crosses
