"""Errors that a user can mend: one line that names the file or setting, and the fix."""

from __future__ import annotations


class UserError(ValueError):
    """Printed as one line by the command, without a traceback."""
