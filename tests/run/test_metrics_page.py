"""docs/metrics.md has a line for everything that a run logs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pretrain.trainer import train
from tests.run.conftest import MakeConfig

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


def described() -> dict[str, set[str]]:
    """The keys in the table for each kind of row; under "" those in every row."""
    parts = re.split(r"^## (\w+)$", PAGE, flags=re.MULTILINE)
    return {
        kind: set(re.findall(r"^\| `(\w+)`", part, flags=re.MULTILINE))
        for kind, part in zip(["", *parts[1::2]], parts[::2], strict=True)
    }


@pytest.mark.parametrize("task", ["depo", "text"])
def test_every_key_that_a_run_writes_is_described(
    task: str, request: pytest.FixtureRequest
) -> None:
    make: MakeConfig = request.getfixturevalue(task)
    run = train(make(task, steps=1), progress=False)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {row["kind"] for row in rows} >= {"train", "eval"}
    known = described()
    for row in rows:
        assert row.keys() <= known[""] | known[row["kind"]]
