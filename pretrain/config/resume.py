"""What a run that goes on may change: only what does not enter what has been computed so far.

The fields say so (`changes` in schema.py). That the data are the same, wherever they are now, the
streams check themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain.config.fields import differences
from pretrain.config.schema import Config
from pretrain.errors import UserError, shortened

MAX_NAMED = 5  # settings in a message


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
        raise UserError(f"{checkpoint} cannot be continued with {_named(changed)}: {fix}")


def changes(before: Config, now: Config) -> str:
    """What a run that goes on has otherwise than before; "" if nothing."""
    return _named([(place, old, new) for place, _, old, new in differences(before, now)])


def _named(changed: Sequence[tuple[str, Any, Any]]) -> str:
    each = [
        f"{place} = {shortened(repr(new))} (it had {shortened(repr(old))})"
        for place, old, new in changed[:MAX_NAMED]
    ]
    more = len(changed) - MAX_NAMED
    return ", ".join(each) + (f" and {more} more" if more > 0 else "")
