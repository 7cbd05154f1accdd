"""Which updates a stop lets through while the ranks agree on the step to save. The test plays the
second rank.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from parallel import mesh
from pretrain.run.stop import Stop

pytestmark = pytest.mark.smoke  # one process

LONG = 20.0  # seconds; nothing here takes that long
SHORT = 0.3  # seconds after which something that has not continued counts as held back


class Running(threading.Thread):
    """An action, in a thread, that may be held back."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.act, self.result = act, None
        self.start()

    def run(self) -> None:
        self.result = self.act()  # type: ignore[assignment]

    def goes_on(self, seconds: float) -> bool:
        """Whether it finishes within `seconds`."""
        self.join(seconds)
        return not self.is_alive()


def update(stop: Stop, step: int) -> None:
    with stop.update(step):
        pass


@pytest.mark.parametrize(("other", "saved"), [(4, 4), (5, 5)])
def test_no_update_beyond_the_step_that_is_saved(other: int, saved: int) -> None:
    mesh.initialize()
    stop = Stop(3, lambda: None, pytest.fail, LONG)
    update(stop, 4)
    stop._world = 2
    agreement = Running(lambda: stop._agree(stop._connect()))
    while stop._limit is None and agreement.is_alive():  # until the agreement has begun
        agreement.join(0.001)
    next_step = Running(lambda: update(stop, 5))
    assert not next_step.goes_on(SHORT), "before all have said where they are"
    stop._store.set("begun/1", str(other))
    assert agreement.goes_on(LONG) and agreement.result == saved
    assert next_step.goes_on(LONG if saved == 5 else SHORT) == (saved == 5)
    assert not Running(lambda: update(stop, 6)).goes_on(SHORT)
