"""A checksum at the end of a model file, so that damage is found before sentencepiece parses it.

sentencepiece itself does not look: some flipped bits give other tokens without a word. The checksum
is one more field of the file's protocol buffer, with a number that sentencepiece leaves to others,
so that it reads a sealed file like any other.
"""

from __future__ import annotations

import hashlib

_FIELD = b"\xc2\x3e\x20"  # field 1000 (200 and up are free), bytes, 32 of them


def seal(model: bytes) -> bytes:
    """The content of a model file."""
    return model + _FIELD + hashlib.sha256(model).digest()


def is_whole(file: bytes) -> bool:
    """Whether `file` is exactly what `seal` gave."""
    return seal(file[: -len(_FIELD) - hashlib.sha256().digest_size]) == file
