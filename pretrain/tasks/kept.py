"""Holds out a share of all words, cycles or patterns for the test: no training row has them.

A small problem has so few of them that a model may memorise the answers; a right answer to a
held-out one has been worked out.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pretrain.data.splitmix import STEP, Words, mix
from pretrain.errors import UserError
from pretrain.tasks.counter import Ints

Mask = NDArray[np.bool_]


def redrawn(draw: Callable[[str], Ints], is_kept: Callable[[Ints], Mask], *, kept: bool) -> Ints:
    """[B, ..] redrawn, item by item, until all items are held-out ones (`kept`), or none is.

    Args:
        draw: draws all items; its argument is a suffix for the names of draws when redrawing.
        is_kept: which items are held out; may have fewer dimensions, the leading ones.
    Raises:
        UserError: everything that can be drawn is held out, or nothing is.
    """
    found = draw("")
    for attempt in range(1000):
        wrong = is_kept(found) != kept
        if not wrong.any():
            return found
        wrong = wrong.reshape(wrong.shape + (1,) * (found.ndim - wrong.ndim))
        found = np.where(wrong, draw(f"/{attempt}"), found)
    raise UserError("there are so few problems that all or none are kept; set kept = 0")


def one_in(count: int, numbers: Ints) -> Mask:
    """[.., k] -> [..]: whether a sequence of k numbers is held out, as one in `count` is."""
    number: Words = np.zeros(numbers.shape[:-1], dtype=np.uint64)
    for i in range(numbers.shape[-1]):
        number = mix(number * np.uint64(STEP) + numbers[..., i].astype(np.uint64) + np.uint64(1))
    return number % np.uint64(count) == 0


def check_kept(place: str, count: int) -> None:
    """UserError: nothing would be left to train on."""
    if count == 1:
        raise UserError(f"{place} = 1 keeps all for the test; set it to 8 (one in eight) or to 0")


def described(config: object, window: int) -> str:
    """All that a task's rows depend on, for its fingerprint; kept=0 is left out, as in old runs."""
    return f"{config} window={window}".replace(", kept=0", "")
