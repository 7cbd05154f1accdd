"""Random layouts of random models that read random documents, drawn anew each time.

`make test-all` draws a few of up to two ranks, `make test-layouts` many of up to four. A failure
names its seed: HYPNOS_LAYOUT_SEED=SEED draws it first.
"""

from __future__ import annotations

import os
import re
import secrets

import pytest
import torch.distributed as dist

from parallel import mesh
from tests.layouts.cases import Case, Layout, draw
from tests.layouts.problem import Problem
from tests.layouts.processes import compare
from tests.layouts.worker import build
from tests.ranks import run_ranks

FEW = 8
MANY = int(os.environ.get("HYPNOS_LAYOUTS", 0))
RANKS = (1, 2, 3, 4, 4) if MANY else (1, 2, 2)
SEED = os.environ.get("HYPNOS_LAYOUT_SEED")


@pytest.mark.parametrize("number", range(MANY or FEW))
def test_as_one_process(number: int) -> None:
    seed = int(SEED) + number if SEED else secrets.randbits(32)
    case = draw(seed, RANKS)
    print(f"HYPNOS_LAYOUT_SEED={seed} HYPNOS_LAYOUTS={MANY or ''}:", case)
    (errors,) = compare([case])
    assert not case.excess(errors), errors


DELTA = ("delta",) * 4
FOUND = {
    # A stage that the first window of a batch does not reach.
    "memory begins where a stage does": Case(
        Layout(pp=2, microbatches=2, stages=(1, 1)),
        Problem(layers=("delta", "attention"), passes=1, when="context", documents=0),
    ),
    # After `recompute` had run a block again, weights still needed for gradients had been released.
    "weights are gathered as in the pass before": Case(
        Layout(zero=3, recompute="unit", microbatches=4),
        Problem(layers=("delta", "attention", "attention"), coda=1, passes=2, documents=0),
    ),
    # Two ranks summed one's gradient of the queries' convolution and the other's of the keys'.
    "gradients are reduced as they come": Case(
        Layout(dp=2, zero=2),
        Problem(layers=DELTA, coda=1, passes=3, truncate_passes=1, eviction="sliding", documents=1),
    ),
}


@pytest.mark.parametrize("plant", FOUND)
def test_what_random_layouts_have_found(plant: str) -> None:
    case = FOUND[plant]
    (errors,) = compare([case])
    assert not case.excess(errors), errors
    try:
        (errors,) = compare([case._replace(plant=plant)])
    except AssertionError as failed:
        assert re.search("must match the size|has no attribute 'memory'", str(failed)), failed
    else:
        assert case.excess(errors), "unnoticed"


def test_the_order_of_reductions_does_not_lean_on_what_ranks_agree_on() -> None:
    """Either of the two is enough."""
    case = FOUND["gradients are reduced as they come"]
    (errors,) = compare([case._replace(plant="structure is not agreed")])
    assert not case.excess(errors), errors


def _told_of_another_order() -> str:
    """A rank's error message when the other one has gathered other blocks."""
    mesh.initialize(timeout=60)
    problem = Problem()
    engine = build(problem, Layout(dp=2, zero=3))[0]
    assert engine.gathering is not None
    engine.gathering.order += dist.get_rank()
    loss = engine(problem.batch(0)).loss
    try:
        engine.backward(loss, 1)
    except RuntimeError as error:
        return str(error)
    return "nothing"


def test_weights_gathered_in_another_order_end_the_run() -> None:
    message = r"rank \d on .*: rank 1 has gathered weights in another order than rank 0"
    for said in run_ranks(2, _told_of_another_order):
        assert re.match(message, said)
