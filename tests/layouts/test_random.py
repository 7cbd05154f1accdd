"""Random layouts of random models that read random documents, drawn anew each time.

`make test-all` draws a few of up to two ranks, `make test-layouts` many of up to four. What fails
names its seed: HYPNOS_LAYOUT_SEED=SEED draws it first.
"""

from __future__ import annotations

import os
import secrets

import pytest

from tests.layouts.cases import draw
from tests.layouts.processes import compare

FEW = 12
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
