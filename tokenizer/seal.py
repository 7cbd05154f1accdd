"""A checksum at the end of a model file, so that damage is found before sentencepiece parses it.

sentencepiece does not check: some flipped bits silently give other tokens. The checksum is one more
field of the file's protocol buffer, with a number reserved for extensions, so sentencepiece reads a
sealed file like any other.
"""

from __future__ import annotations

import hashlib

_FIELD = b"\xc2\x3e\x20"  # field 1000 (200 and up are free), bytes, 32 of them


def seal(model: bytes) -> bytes:
    """The content of a model file, with its checksum appended."""
    return model + _FIELD + hashlib.sha256(model).digest()


def is_whole(file: bytes) -> bool:
    """Whether `file` is exactly what `seal` returned."""
    return seal(file[: -len(_FIELD) - hashlib.sha256().digest_size]) == file
