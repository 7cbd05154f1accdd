"""The digests by which a history is found again.

They are of messages as clients send them, one after the other: a client that resends its history
names the same digests, whatever tokens the model said it in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from pretrain.inference.chat import Turn


def begin(passes: int, until: float, form: str) -> str:
    """The digest of no message, by N, the stop rule that windows are slept over with, and the key
    of the form that messages are written in.
    """
    return _hash(f"{passes} passes until {until} in {form}".encode())


def digest(before: str, turn: Turn) -> str:
    """Of one message more."""
    content = turn.content.encode()
    return _hash(f"{before} {turn.speaker} {len(content)} ".encode() + content)


def digests(before: str, turns: Iterable[Turn]) -> list[str]:
    """After no message, after the first, and so on to the last."""
    found = [before]
    for turn in turns:
        found.append(digest(found[-1], turn))
    return found


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
