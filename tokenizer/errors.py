"""Errors of the tokenizer that a user can fix."""

from __future__ import annotations


class TokenizerError(ValueError):
    """One line that names the file or setting, and the fix; printed by the command without a
    traceback.
    """
