"""Which existing metrics rows a resumed run keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pretrain.run.metrics import Metrics, ResumePoint
from tests.runs import rows


@pytest.mark.parametrize(
    ("evaluated", "rollbacks", "kept"),
    [
        (True, 0, ["train 1", "train 2", "eval 2"]),
        # stopped between the two rows of an evaluation, which is repeated
        (False, 0, ["train 1", "train 2"]),
        (True, 1, ["train 1", "train 2", "eval 2", "skipped 3"]),  # why it rolled back
    ],
)
def test_rows_after_a_checkpoint_are_dropped(
    evaluated: bool, rollbacks: int, kept: list[str], tmp_path: Path
) -> None:
    with Metrics(tmp_path, None) as metrics:
        for kind, step in (("train", 1), ("train", 2), ("eval", 2), ("train", 3)):
            metrics.write(kind, step, {"loss": 1.0})
        # a line separator for some readers, but not in JSON
        metrics.write("skipped", 3, {"rollbacks": 0, "samples": "a\u2028b"})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "skipped", "step": 1, "rollbacks": null}\n')
        file.write("[" * 100_000 + "\n")  # not a row, and nested deeper than Python's parser allows
        file.write('{"kind": "train", "st')  # cut short by a crash
    with Metrics(tmp_path, ResumePoint(2, evaluated, rollbacks)):
        assert [f"{row['kind']} {row['step']}" for row in rows(tmp_path)] == kept


@pytest.mark.parametrize(
    ("losses", "shown"),
    [
        ([float(i) for i in range(2048)], {128 * k: 128 * k + 63.5 for k in range(16)}),
        ([float(i) for i in range(16)], {k: float(k) for k in range(16)}),
        # means of two positions each; positions that are not scored are in none
        ([None, None, None, 1.0, 2.0, *[3.0] * 12], {2: 1.0, 4: 2.5, 16: 3.0}
         | dict.fromkeys(range(6, 16, 2), 3.0)),
        ([], {}),
    ],
)  # fmt: skip
def test_tensorboard_has_few_means_of_the_losses_by_position(
    losses: list[float | None], shown: dict[int, float], tmp_path: Path
) -> None:
    with Metrics(tmp_path, None) as metrics:
        metrics.write("eval", 3, {"passes": 2, "loss": 1.5, "loss_per_position": losses})
    (row,) = rows(tmp_path)
    assert row["loss_per_position"] == losses  # the row has all of them
    board: Any = EventAccumulator(str(tmp_path / "tensorboard"))  # type: ignore[no-untyped-call]
    board.Reload()
    name = "eval/passes_2/loss_per_position/"
    found = {
        int(tag.removeprefix(name)): board.Scalars(tag)[0].value
        for tag in board.Tags()["scalars"]
        if tag.startswith(name)
    }
    assert found == shown and board.Scalars("eval/passes_2/loss")[0].value == 1.5
