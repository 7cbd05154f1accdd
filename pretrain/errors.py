"""Errors that a user can mend: one line that names the file or setting, and the fix."""

from __future__ import annotations

import errno

from pretrain.exit_status import PEER_GONE, STORAGE, USER_ERROR

# of storage that is away for a while, not of a file that is not there, or a disk that is full
PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EREMOTEIO}


class UserError(ValueError):
    """Printed as one line by the command, without a traceback."""

    status = USER_ERROR  # of the command

    def __init__(self, text: str, status: int | None = None) -> None:
        """
        Args:
            status: what the command ends with, if it is not that of the class: what one rank raises
                for another has the other's.
        """
        super().__init__(text)
        if status is not None:
            self.status = status


class PeerGone(UserError):
    """Another rank has gone, and so must this one. It is not the user's: start again."""

    status = PEER_GONE


class StorageFailed(UserError):
    """Storage did not answer, or failed: another start may find it well."""

    status = STORAGE


def storage_error(error: OSError) -> type[UserError]:
    """What is raised for an error of a file system: of one that may pass `StorageFailed`."""
    return StorageFailed if error.errno in PASSING else UserError


def shortened(text: str, most: int = 100) -> str:
    """What a message shows of a text that may be of any length and hold anything."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:most])
    return shown if len(text) <= most else f"{shown}..."
