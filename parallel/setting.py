"""`setting`: a dataclass field that carries its description and its bounds.

Its type says what kind of value it takes; `Literal` lists the allowed words or numbers.
`pretrain/config/fields.py` checks values by this, and prints and documents it.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")
REQUIRED: Any = MISSING  # in place of a default


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a field carries besides its type and its default."""

    meaning: str
    at_least: float | None = None  # bounds hold for a number, and for each number of a list
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    changes: bool = False  # may be changed when a run is resumed
    path: bool = False  # a file or a folder: `~` is expanded


def setting(default: T, meaning: str, **rule: Any) -> T:
    """A field of a dataclass of settings.

    Args:
        default: a list is copied for each object; REQUIRED if there is none.
        meaning: one sentence, for the user.
        rule: the other fields of `Rule`.
    """
    metadata = {"rule": Rule(meaning=meaning, **rule)}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)  # type: ignore[return-value]
    return field(default=default, metadata=metadata)
