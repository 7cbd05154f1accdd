"""Errors that a user can mend: one line that names the file or setting, and the fix."""

from __future__ import annotations

from pretrain.exit_status import PEER_GONE, USER_ERROR


class UserError(ValueError):
    """Printed as one line by the command, without a traceback."""

    status = USER_ERROR  # of the command


class PeerGone(UserError):
    """Another rank has gone, and so must this one. It is not the user's: start again."""

    status = PEER_GONE


def shortened(text: str, most: int = 100) -> str:
    """What a message shows of a text that may be of any length and hold anything."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:most])
    return shown if len(text) <= most else f"{shown}..."
