"""What the documents show, to be tried."""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def program(page: str) -> str:
    """The Python program that a page shows."""
    _, begin, rest = (DOCS / page).read_text(encoding="utf-8").partition("```python\n")
    assert begin and "```python" not in rest, f"{page} shows no program, or several"
    return rest.partition("```")[0]
