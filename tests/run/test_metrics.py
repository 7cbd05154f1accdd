"""What a resumed run keeps of the rows that are there."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.run.metrics import Metrics, ResumePoint
from tests.runs import rows


@pytest.mark.parametrize(
    ("evaluated", "rollbacks", "kept"),
    [
        (True, 0, ["train 1", "train 2", "eval 2"]),
        # stopped between the two rows of an evaluation, which is done again
        (False, 0, ["train 1", "train 2"]),
        (True, 1, ["train 1", "train 2", "eval 2", "skipped 3"]),  # what led to the rollback stays
    ],
)
def test_rows_after_a_checkpoint_are_dropped(
    evaluated: bool, rollbacks: int, kept: list[str], tmp_path: Path
) -> None:
    with Metrics(tmp_path, None) as metrics:
        for kind, step in (("train", 1), ("train", 2), ("eval", 2), ("train", 3)):
            metrics.write(kind, step, {"loss": 1.0})
        # a line to some, but not in JSON
        metrics.write("skipped", 3, {"rollbacks": 0, "samples": "a\u2028b"})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "skipped", "step": 1, "rollbacks": null}\n')
        file.write("[" * 100_000 + "\n")  # no row, and more than Python's parser takes
        file.write('{"kind": "train", "st')  # cut short by a crash
    with Metrics(tmp_path, ResumePoint(2, evaluated, rollbacks)):
        assert [f"{row['kind']} {row['step']}" for row in rows(tmp_path)] == kept
