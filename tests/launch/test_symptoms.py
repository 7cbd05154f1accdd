"""docs/launch.md, docs/preflight.md: each message they quote is produced by the test they name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PREFLIGHT = ("test_preflight.py", "test_preflight_ranks.py")


def rows(page: str, header: str) -> list[str]:
    """The rows of a page's table of messages."""
    table = (DOCS / page).read_text().partition(header)[2].strip().partition("\n\n")[0]
    return [row for row in table.splitlines() if row.startswith("| `")]


def source(*tests: Path) -> str:
    """What tests say, with strings that go on in the next line in one piece."""
    return re.sub(r'"\n\s*f?"', "", "".join(test.read_text() for test in tests))


STARTS = rows("launch.md", "| it says |")
MEETINGS = rows("preflight.md", "## Symptoms")


def test_there_are_many() -> None:
    assert len(STARTS) > 10 and len(MEETINGS) > 10


@pytest.mark.parametrize("row", STARTS, ids=lambda row: row.split("`")[1])
def test_a_test_produces_it(row: str) -> None:
    said, test = row.split("`")[1], re.search(r"\[test\]\(([^)]+)\)", row)
    assert test is not None
    assert said in source(DOCS / test[1])


@pytest.mark.parametrize("row", MEETINGS, ids=lambda row: row.split("`")[1])
def test_a_test_of_preflights_produces_it(row: str) -> None:
    """Its longest part without paths, numbers and names with numbers, which differ there."""
    said = max(re.split(r"\.\.\.|/\w+|\b\w*\d\w*\b", row.split("`")[1]), key=len)
    assert len(said) > 10
    assert said in source(*(Path(__file__).with_name(test) for test in PREFLIGHT))
