"""Incremental detokenisation: never half a character, and nothing of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from tokenizer.encode import Tokenizer


class TextDecoder:
    """The text of tokens that come one by one.

    Text that may still become part of a character or of a stop string is held back, so that the
    pieces together are the text of all tokens, up to a stop string.

    stopped   the stop string that was found; nothing follows it
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, [text for text in stop if text]
        self.stopped: str | None = None
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # text that may be the beginning of a stop string

    @property
    def holds(self) -> bool:
        """Whether some text is held back."""
        return bool(self._bytes.getstate()[0] or self._held)

    def push(self, token: int) -> str:
        """The text that becomes final with this token."""
        return self._certain(self._bytes.decode(self.tokenizer.token_bytes[token]))

    def finish(self) -> str:
        """The text that was held back, when no more tokens come."""
        text = self._certain(self._bytes.decode(b"", final=True))
        held, self._held = self._held, ""
        return text + held

    def _certain(self, text: str) -> str:
        text = self._held + text
        if self.stopped is not None:
            return ""
        ends = [
            (text.index(stop) + len(stop), -len(stop), stop) for stop in self.stop if stop in text
        ]
        if ends:  # the one that ends first, and of those that end together the longest
            end, _, self.stopped = min(ends)
            self._held = ""
            return text[: end - len(self.stopped)]
        beginnings = (n for n in range(len(text), 0, -1) if self._may_become_stop(text[-n:]))
        held = next(beginnings, 0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def _may_become_stop(self, end: str) -> bool:
        return any(stop.startswith(end) for stop in self.stop)
