"""The stop rule: in any batch, a row's state is that after a sleep of exactly its own N."""

import itertools
from dataclasses import replace

import pytest
import torch

from pretrain import evaluate
from pretrain.data.batch import Batch
from pretrain.inference.decode import Decoder
from pretrain.inference.session import Session
from pretrain.model.sleep import SleepLM
from pretrain.model.stop_rule import StopRule, change_of
from tests.model.tiny import MODEL, L, build, change, sequences

MOST = 6


def last_state(model: SleepLM, batch: Batch, passes: int, stop: StopRule | None = None):
    batch.carries[:] = True
    with torch.no_grad():
        return model(batch, passes=passes, stop=stop).state


@pytest.mark.parametrize("eviction, coda", [("hard", 0), ("sliding", 0), ("hard", 1)])
def test_each_row_stops_by_itself(eviction: str, coda: int) -> None:
    """One window that is only consolidated. With this share, rows stop at different passes."""
    model = build(change(when="context", eviction=eviction, coda=coda))
    batch = sequences(L, rows=4, unscored={row: [0] for row in range(4)})
    by_passes = [last_state(model, batch, n) for n in range(1, MOST + 1)]
    changes = torch.stack(
        [change_of(a, b, model.core) for a, b in itertools.pairwise(by_passes)]
    )  # [MOST - 1, 4], of passes 2..MOST
    share = float(changes[1:-1].median())
    under = torch.cat([changes < share, torch.ones(1, 4, dtype=torch.bool)])
    expected = (2 + under.int().argmax(dim=0)).clamp(max=MOST)
    assert len(expected.unique()) > 1

    stop = StopRule(share)
    state = last_state(model, batch, MOST, stop)
    assert stop.made[0].tolist() == expected.tolist()
    assert stop.means()["passes_of_batches"] == int(expected.max())
    for block, *at_n in zip(state.blocks, *(s.blocks for s in by_passes), strict=True):
        for i, part in enumerate(block):
            for row, n in enumerate(expected.tolist()):
                # the last block of a last pass only writes: its products have another width
                torch.testing.assert_close(part[row], at_n[n - 1][i][row], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("coda", [0, 1])
def test_a_session_stops_as_a_batch_does(coda: int) -> None:
    model = build(change(passes=MOST, coda=coda))
    batch = sequences(3 * L, rows=1)
    probe, share = StopRule(1e-9), 0.0
    with torch.no_grad():
        model(batch, stop=probe)
    assert all(made.tolist() == [MOST] for made in probe.made)  # it never settles
    for share in (0.9, 0.5, 0.3, 0.2, 0.1):
        stop, seen = StopRule(share), []

        def head(w, y, targets, seen=seen):
            seen.append(model.logits(y))
            return model.losses(y, targets)

        with torch.no_grad():
            model(batch, stop=stop, head=head)
        session = Session(Decoder(model), until=share)
        said = session.read(batch.tokens[0], every=True)
        assert torch.allclose(said, torch.cat(seen), atol=1e-10)
        # the session also owes a sleep over its last window, which the batch never does
        made = session.sleep_passes + len(stop.made)
        assert made - int(torch.cat(stop.made).sum()) == 0
    assert session.slept == 2


def test_an_evaluation_says_what_was_spent() -> None:
    """A share of 0.999 stops after the first sleep pass; a tiny one never. N = 1 never sleeps."""
    model = build(change(passes=4, when="context"), dtype=torch.float32)
    batch = sequences(3 * L, unscored={0: [0, 1], 1: [0, 1]})
    evaluation = evaluate.Evaluation([batch, batch], L, 1, None)
    two, four = evaluation.run(model, 2), evaluation.run(model, 4)
    early, never = evaluation.run(model, 4, 0.999), evaluation.run(model, 4, 1e-9)
    assert two["loss"] != four["loss"]
    assert (early["loss"], early["passes_made"], early["passes_of_batches"]) == (two["loss"], 2, 2)
    assert (never["loss"], never["passes_made"], never["until"]) == (four["loss"], 4, 1e-9)
    one = evaluation.run(model, 1, 0.999)
    assert (one["passes_made"], one["passes_of_batches"]) == (1, 1)


def test_what_has_no_fast_weights_has_settled_after_a_pass() -> None:
    """Any N may be asked of a model that was trained with N = 1 and has attention only."""
    model = build(change(passes=1), replace(MODEL, layers=["attention"]))
    evaluation = evaluate.Evaluation([sequences(2 * L)], L, 1, None)
    assert evaluation.run(model, 4, 0.1)["passes_made"] == 2
    session = Session(Decoder(model), passes=4, until=0.1)
    session.read(sequences(2 * L, rows=1).tokens[0])
    session.sleep()
    assert (session.slept, session.sleep_passes) == (2, 2)
