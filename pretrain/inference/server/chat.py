"""Messages as the text a model reads, and the digest by which a history is found again.

    System: You answer briefly.
    User: What is sleep?
    Assistant: Passes over a full window.

A message is written as soon as it is known and never again, so a conversation that goes on is the
text before and what is new. The digest is of messages as clients send them, one after the other:
a client that resends its history names the same digests, whatever tokens the model said it in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

NAMES = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant"}
# An answer ends where the model begins to speak for somebody else.
STOPS = ("\nUser:", "\nSystem:", "\nAssistant:")
ANSWER = "Assistant:"  # what an answer begins after
END = "\n"  # and what ends it


class Turn(NamedTuple):
    """Who said what."""

    role: str
    content: str


def parts(turn: Turn) -> tuple[str, str, str]:
    """One message as text. Each part is encoded by itself, as an answer's is."""
    return f"{NAMES[turn.role]}:", f" {turn.content}", END


def said(text: str) -> str:
    """The message that an answer's text is: what comes after "Assistant: "."""
    return text.removeprefix(" ")


def begin(passes: int, until: float) -> str:
    """The digest of no message, by N and the stop rule that windows are slept over with."""
    return hashlib.blake2b(f"{passes} passes until {until}".encode(), digest_size=16).hexdigest()


def digest(before: str, turn: Turn) -> str:
    """Of one message more."""
    content = turn.content.encode()
    head = f"{before} {NAMES[turn.role]} {len(content)} ".encode()
    return hashlib.blake2b(head + content, digest_size=16).hexdigest()


def digests(before: str, turns: Iterable[Turn]) -> list[str]:
    """After no message, after the first, and so on to the last."""
    found = [before]
    for turn in turns:
        found.append(digest(found[-1], turn))
    return found
