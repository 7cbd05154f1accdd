"""Where a text may be cut without changing its tokens.

sentencepiece writes a space as U+2581 and, trained with `split_by_whitespace`, learns only pieces
whose spaces stand at the front ("▁the", "▁▁▁▁"). So no piece spans the place before the first space
of a run, and the parts to either side of it are encoded independently. Cutting there keeps the
memory of encoding a long document small (sentencepiece keeps ~100 bytes per character) and lets
threads share it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

CUT_CHARACTERS = 32_768  # a part is at least this long, unless it ends the text

_WORD = re.compile(r"(?<! ) ")  # the first space of a run


def parts(text: str, size: int = CUT_CHARACTERS) -> Iterator[str]:
    """Cut `text` into parts of at least `size` characters whose tokens, joined, are the tokens of
    `text`.
    """
    start = 0
    while len(text) - start > size:
        cut = _WORD.search(text, start + size)
        if cut is None:
            break
        yield text[start : cut.start()]
        start = cut.start()
    if start < len(text):
        yield text[start:]
