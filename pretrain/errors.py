"""Errors that a user can fix: one line that names the file or setting, and the fix."""

from __future__ import annotations

import errno

from pretrain.exit_status import PEER_GONE, STORAGE, USER_ERROR

# errors of storage that is temporarily away, not of a missing file or a full disk
PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EREMOTEIO}
FORBIDDEN = {errno.EACCES, errno.EPERM}
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class UserError(ValueError):
    """The command prints it as one line, without a traceback."""

    status = USER_ERROR  # exit status of the command

    def __init__(self, text: str, status: int | None = None) -> None:
        """
        Args:
            status: the command's exit status, if not that of the class; an error that a rank raises
                on behalf of another has the other's.
        """
        super().__init__(text)
        if status is not None:
            self.status = status


class PeerGone(UserError):
    """Another rank has died, so this one must exit too. Not the user's fault: start again."""

    status = PEER_GONE


class StorageFailed(UserError):
    """Storage did not answer, or failed; another start may succeed."""

    status = STORAGE


def storage_error(error: OSError) -> type[UserError]:
    """The class to raise for a file system error: `StorageFailed` if it may be temporary."""
    return StorageFailed if error.errno in PASSING else UserError


def not_written(where: object, error: OSError) -> str:
    """What failed, why, and what to do about it; another way may follow."""
    return f"{where}: cannot be written: {error.strerror}; {write_fix(error)}"


def write_fix(error: OSError) -> str:
    """What to do, in a few words, before a write that failed is tried again."""
    if error.errno in FORBIDDEN:
        return "fix its permissions"
    return "make room there" if error.errno in FULL else "check the file system there"


def shortened(text: str, most: int = 100) -> str:
    """Untrusted text of any length, shortened and escaped for a message."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:most])
    return shown if len(text) <= most else f"{shown}..."
