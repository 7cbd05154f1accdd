"""Digests of message histories, by which a stored session is found again.

They are computed from messages as clients send them, cumulatively: a client that resends a history
produces the same digests, whatever tokens the model generated it in.
"""

from __future__ import annotations

import hashlib

from pretrain.inference.chat import Turn


def begin(passes: int, until: float, form: str) -> str:
    """The digest of an empty history, from N, the stop rule of sleep, and the key of the chat
    form.
    """
    return _hash(f"{passes} passes until {until} in {form}".encode())


def digest(before: str, turn: Turn) -> str:
    """The digest after one more message."""
    content = turn.content.encode()
    return _hash(f"{before} {turn.speaker} {len(content)} ".encode() + content)


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
