"""What a run that goes on may change: only what does not enter what has been computed so far.

The fields say so (`changes` in schema.py). That the data are the same, wherever they are now, the
streams check themselves.
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
LEAD = 40  # of these, before what differs


def check_unchanged(
    checkpoint: Path, before: Config, now: Config, fix: str, shape_only: bool = False
) -> None:
    """UserError names the settings that would have given another result so far, and a fix.

    Args:
        checkpoint: the folder whose configuration `before` is.
        shape_only: it holds weights that were imported: nothing else of `before` is in them.
    """
    changed = [
        (place, old, new)
        for place, setting, old, new in differences(before, now)
        if not setting.rule.changes and (place.startswith("model.") or not shape_only)
    ]
    if changed:
        raise UserError(f"{checkpoint} cannot be used with {_named(changed)}: {fix}")


def changes(before: Config, now: Config) -> str:
    """What a run that goes on has otherwise than before; "" if nothing."""
    return _named([(place, old, new) for place, _, old, new in differences(before, now)])


def _named(changed: Sequence[tuple[str, Any, Any]]) -> str:
    each = [changed_to(*change) for change in changed[:MAX_NAMED]]
    more = len(changed) - MAX_NAMED
    return ", ".join(each) + (f" and {more} more" if more > 0 else "")


def changed_to(place: str, before: Any, now: Any) -> str:
    """What a setting is, and was."""
    old, new = _around_difference(to_toml(before), to_toml(now))
    return f"{place} = {new} (was {old})"


def _around_difference(old: str, new: str) -> tuple[str, str]:
    """Both, each shortened to where they begin to differ if it is long."""
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(old, new, strict=False)))
    begin = max(0, same - LEAD)
    cut = [max(0, min(begin, len(text) - MAX_SHOWN)) for text in (old, new)]
    one, two = (
        f"{'...' if at else ''}{shortened(text[at:], MAX_SHOWN)}"
        for at, text in zip(cut, (old, new), strict=True)
    )
    return one, two
