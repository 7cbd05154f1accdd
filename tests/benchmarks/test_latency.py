"""What the benchmark of latency compares is the same work."""

from __future__ import annotations

from unittest import mock

from benchmarks import latency
from pretrain.config.schema import SleepConfig
from pretrain.data.batch import Batch
from pretrain.model.plan import plan_windows


def test_training_sleeps_as_often_as_the_prefill_that_it_is_compared_with() -> None:
    made: list[int] = []

    def model(batch: Batch, passes: int) -> None:
        windows = plan_windows(batch, SleepConfig(window=latency.WINDOW), passes=passes)
        made[:] = [window.n_passes for window in windows]

    with mock.patch.object(latency, "Session"):
        latency.reading(model, mock.Mock(), 4)  # type: ignore[arg-type]
    assert made == [4] * 8
