"""Sessions on tensor-parallel ranks produce what one process produces."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from parallel import mesh
from pretrain.config.schema import SleepConfig
from pretrain.inference.decode import Decoder
from pretrain.inference.session import Session, read_together
from pretrain.inference.store import save_session
from pretrain.model.sleep import SleepLM
from pretrain.model.stop_rule import change_of
from tests.model.tiny import MODEL
from tests.ranks import run_ranks

L = 6
SPLIT = replace(
    MODEL, vocab_size=24, delta_key_heads=2, delta_value_heads=4, delta_key_dim=6,
    delta_value_dim=8, embedding_std=1.0, init_std=0.2, head_std=0.2, decay_init=(1e-4, 1e-2),
)  # fmt: skip


def said(tp: int, eviction: str, passes: int) -> list[list[float]]:
    """Logits of prefill, of tokens one by one, and of two sessions together, over four windows; and
    after a context. Then what a stop rule would say of two states of all ranks' heads.
    """
    mesh.initialize(tp=tp)
    sleep = SleepConfig(window=L, passes=passes, eviction=eviction, prelude=1, coda=1)  # type: ignore[arg-type]
    decoder = Decoder(SleepLM(SPLIT, sleep).initialize(3))
    ids = torch.randint(0, 24, (4 * L,), generator=torch.Generator().manual_seed(5)).tolist()
    whole, alone, other = (Session(decoder) for _ in range(3))
    found = [*whole.read(ids, every=True)]
    other.read(ids[:4])
    for token in ids:
        found.append(alone.read([token]))
    for token in ids:
        alone.sleep()
        other.sleep()
        found += read_together([alone, other], [token, 23 - token])
    for until in (0.0, 0.3):
        asked = Session(decoder, until=until)
        asked.read_context(ids[: 2 * L + 2])
        found.append(asked.read(ids[:2]))
    states = (session.memory.state() for session in (alone, other))
    found.append(change_of(*states, decoder.model.core).float().expand(24))
    if tp > 1:
        with pytest.raises(ValueError, match="only a session on one rank"):
            alone.sleep_in_background()
        with pytest.raises(ValueError, match="run the model with tp = 1"):
            save_session(None, alone)  # type: ignore[arg-type]
    return torch.stack(found).tolist()


@pytest.mark.parametrize("eviction", ["hard", "sliding"])
def test_two_ranks_say_what_one_says(eviction: str) -> None:
    expected = torch.tensor(said(1, eviction, passes=3))
    assert (torch.tensor(said(1, eviction, passes=1)) - expected).abs().max() > 1e-2
    for rank in run_ranks(2, said, 2, eviction, 3):
        torch.testing.assert_close(torch.tensor(rank), expected, atol=1e-4, rtol=1e-4)


def test_ranks_that_share_tokens_are_refused() -> None:
    run_ranks(2, refused)


def refused() -> None:
    for grid in ({"tp": 2, "sequence_parallel": True}, {"cp": 2}):
        mesh.initialize(**grid)
        with pytest.raises(ValueError, match="no sequence and no context parallelism"):
            Decoder(SleepLM(SPLIT, SleepConfig(window=L)).initialize(3))
        mesh.leave_grid()
