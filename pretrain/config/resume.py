"""What a resumed run may change: only settings that do not affect the steps done so far.

The fields say so (`changes` in schema.py). Data streams check themselves that the data are the
same, wherever they are now.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from pretrain.config.fields import differences
from pretrain.config.load import to_toml
from pretrain.config.schema import Config
from pretrain.errors import UserError, shortened

MAX_NAMED = 5  # settings in a message
MAX_SHOWN = 100  # characters of a value
LEAD = 40  # of these, before the first difference


def check_unchanged(
    checkpoint: Path, before: Config, now: Config, fix: str, shape_only: bool = False
) -> None:
    """UserError if settings have changed that affect the steps done so far; names them, and a fix.

    Args:
        checkpoint: the folder with the configuration `before`.
        shape_only: it holds imported weights, which depend only on the model's shape in `before`.
    """
    changed = [
        (place, old, new)
        for place, setting, old, new in differences(before, now)
        if not setting.rule.changes and (place.startswith("model.") or not shape_only)
    ]
    if changed:
        raise UserError(f"{checkpoint} cannot be used with {_named(changed)}: {fix}")


def changes(before: Config, now: Config) -> str:
    """What has changed in a resumed run, for a message; "" if nothing."""
    return _named([(place, old, new) for place, _, old, new in differences(before, now)])


def _named(changed: Sequence[tuple[str, Any, Any]]) -> str:
    each = [changed_to(*change) for change in changed[:MAX_NAMED]]
    more = len(changed) - MAX_NAMED
    return ", ".join(each) + (f" and {more} more" if more > 0 else "")


def changed_to(place: str, before: Any, now: Any) -> str:
    """A setting's new and old value, for a message."""
    old, new = _around_difference(to_toml(before), to_toml(now))
    return f"{place} = {new} (was {old})"


def _around_difference(old: str, new: str) -> tuple[str, str]:
    """Both values; a long one is shortened to the part where they begin to differ."""
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(old, new, strict=False)))
    begin = max(0, same - LEAD)
    cut = [max(0, min(begin, len(text) - MAX_SHOWN)) for text in (old, new)]
    one, two = (
        f"{'...' if at else ''}{shortened(text[at:], MAX_SHOWN)}"
        for at, text in zip(cut, (old, new), strict=True)
    )
    return one, two
