"""What is kept for the test: a share of all words, cycles or patterns that no training row shows.

A small problem has so few of them that a model may learn the answers by heart; with some kept, a
right answer has been worked out.
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
    """[B, ..] drawn again, item by item, until what is kept for the test is there, or is not.

    Args:
        draw: gives all items; takes what is added to the names of draws when it is done again.
        is_kept: of all items; of fewer dimensions, the first ones.
    Raises:
        UserError: all is kept that can be drawn, or nothing.
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
    """[.., k] -> [..]: whether k numbers are, in this order, one of so many that are kept."""
    number: Words = np.zeros(numbers.shape[:-1], dtype=np.uint64)
    for i in range(numbers.shape[-1]):
        number = mix(number * np.uint64(STEP) + numbers[..., i].astype(np.uint64) + np.uint64(1))
    return number % np.uint64(count) == 0


def check_kept(place: str, count: int) -> None:
    """UserError: nothing would be left to train on."""
    if count == 1:
        raise UserError(f"{place} = 1 keeps all for the test; set it to 8 (one in eight) or to 0")


def described(config: object, window: int) -> str:
    """All that a task's rows depend on; they are what they were before something could be kept."""
    return f"{config} window={window}".replace(", kept=0", "")
