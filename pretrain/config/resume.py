"""What a run that goes on may change: only what does not enter what has been computed so far.

The fields say so (`changes` in schema.py). That the data are the same, wherever they are now, the
streams check themselves.
"""

from __future__ import annotations

from pathlib import Path

from pretrain.config.fields import differences
from pretrain.config.schema import Config
from pretrain.errors import UserError, shortened

MAX_NAMED = 5  # settings in a message


def check_unchanged(
    checkpoint: Path, before: Config, now: Config, shape_only: bool = False
) -> None:
    """UserError names the settings that would have given another result so far.

    Args:
        checkpoint: the folder whose configuration `before` is.
        shape_only: it holds weights that were imported: nothing else of `before` is in them.
    """
    changed = [
        f"{place} = {shortened(repr(new))} (it had {shortened(repr(old))})"
        for place, setting, old, new in differences(before, now)
        if not setting.rule.changes and (place.startswith("model.") or not shape_only)
    ]
    if changed:
        more = len(changed) - MAX_NAMED
        named = ", ".join(changed[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
        fix = "set it back, or begin another run with another run.name"
        raise UserError(f"{checkpoint} cannot be continued with {named}: {fix}")
