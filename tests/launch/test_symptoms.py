"""docs/launch.md: each message it quotes is produced by the test that it names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
ROWS = [
    row
    for row in (DOCS / "launch.md").read_text().partition("| it says |")[2].splitlines()
    if row.startswith("| `")
]


def test_there_are_many() -> None:
    assert len(ROWS) > 10


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("`")[1])
def test_a_test_produces_it(row: str) -> None:
    said, test = row.split("`")[1], re.search(r"\[test\]\(([^)]+)\)", row)
    assert test is not None
    source = re.sub(r'"\n\s*f?"', "", (DOCS / test[1]).read_text())
    assert said in source
