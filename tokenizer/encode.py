"""Tokenizer: text to ids and back, losslessly."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Protocol

from tokenizer import foreign
from tokenizer.cut import parts
from tokenizer.errors import TokenizerError
from tokenizer.foreign import NO_CHAT, Chat
from tokenizer.hub import download_first
from tokenizer.seal import is_whole
from tokenizer.sentencepiece_model import SentencePieceModel

MAX_BYTES = 1 << 26  # of a model file; a million pieces take less
PROBE = "  two  spaces\n\ttab \ufb01 e\u0301 \0 \u2581 \U0001f634 "
_SURROGATE = re.compile("[\ud800-\udfff]")


class Model(Protocol):
    """The pieces of a tokenizer, of either kind.

    vocab_size   number of ids
    eos, pad     ids that no text contains; without a PAD token, pad is EOS
    token_bytes  the bytes of each id; none for EOS, PAD and other special ids
    specials     the ids of special tokens, by their text in a chat template
    swallowing   those of them around which transformers drops spaces
    byte_ids     the id of each byte, or None: characters without a piece cannot be encoded
    apart        characters that must not be passed to `encode`, but are encoded as bytes
    may_be_cut   whether `tokenizer.cut` is exact: no piece spans words
    """

    vocab_size: int
    eos: int
    pad: int
    token_bytes: list[bytes]
    specials: dict[str, int]
    swallowing: frozenset[str]
    byte_ids: list[int] | None
    apart: str
    may_be_cut: bool

    def encode(self, texts: list[str], threads: int) -> Iterator[list[int]]:
        """The ids of each text; `token_bytes` inverts this. TypeError: a lone surrogate."""
        ...


class Tokenizer:
    """A tokenizer made by `hypnos tokenizer train`, or from a Hugging Face folder.

    vocab_size, eos, pad, token_bytes, specials, swallowing    see `Model`
    chat         its chat template, if it came with one
    fingerprint  sha256 of everything that determines the ids; shards identify their tokenizer by it
    """

    def __init__(self, model: Model, fingerprint: str, chat: Chat = NO_CHAT) -> None:
        """TokenizerError: it does not return a text unchanged."""
        self.model, self.fingerprint, self.chat = model, fingerprint, chat
        self.vocab_size, self.eos, self.pad = model.vocab_size, model.eos, model.pad
        self.token_bytes = model.token_bytes
        self.specials, self.swallowing = model.specials, model.swallowing
        names = sorted(map(re.escape, self.specials), key=len, reverse=True)
        self._specials = re.compile(f"({'|'.join(names) or '(?!)'})")
        self._apart = re.compile(f"([{model.apart}])" if model.apart else "(?!)()")
        if model.byte_ids is not None and self.decode(self.encode(PROBE)) != PROBE:
            raise TokenizerError("changes text: a sample does not decode to what was encoded")

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[Model, str, Chat]]:
        """Pickles it for another process."""
        return Tokenizer, (self.model, self.fingerprint, self.chat)

    @classmethod
    def of(cls, file: bytes) -> Tokenizer:
        """The tokenizer of the (intact) content of a file of `hypnos tokenizer train`."""
        return cls(SentencePieceModel(file), hashlib.sha256(file).hexdigest())

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """A file of `hypnos tokenizer train`, or a folder with the tokenizer of any model.

        TokenizerError if it is missing, damaged, or does not return texts unchanged.
        """
        path = Path(path)
        try:
            if foreign.is_foreign(path):
                return cls(*foreign.read(path))
            if path.is_dir() and not (path / foreign.SENTENCEPIECE).exists():
                raise TokenizerError(
                    f"holds neither {foreign.FAST} (with {foreign.CONFIGS[0]}) nor "
                    f"{foreign.SENTENCEPIECE}; give the folder of a model that has one of them"
                )
            with (path / foreign.SENTENCEPIECE if path.is_dir() else path).open("rb") as opened:
                file = opened.read(min(os.fstat(opened.fileno()).st_size, MAX_BYTES))
            if not is_whole(file):
                raise TokenizerError(
                    "damaged, or not written by `hypnos tokenizer train`; copy it again or train "
                    "a new one; for another model's tokenizer, give its folder"
                )
            return cls.of(file)
        except OSError as error:
            hint = download_first(path) if isinstance(error, FileNotFoundError) else ""
            why = f"cannot read the tokenizer: {error.strerror}{hint}"
            raise TokenizerError(f"{path}: {why}") from None
        except TokenizerError as error:
            raise TokenizerError(f"{path}: {error}") from None

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without EOS. TokenizerError if it holds a lone surrogate."""
        return next(self.encode_many([text]))

    def encode_many(self, texts: Iterable[str], threads: int = 1) -> Iterator[list[int]]:
        """Ids of each text, in order, computed in `threads` threads (long texts in parts)."""
        units: list[str] = []  # what the model sees
        layouts: list[list[tuple[int, list[int]]]] = []  # per text: units, and ids after them
        for text in texts:
            runs = [*self._apart.split(text), ""]  # a run, the character after it, a run, ...
            layout = []
            for run, character in zip(runs[::2], runs[1::2], strict=True):
                before = len(units)
                units += parts(run) if self.model.may_be_cut else [run] * bool(run)
                layout.append((len(units) - before, self._in_bytes(character)))
            layouts.append(layout)
        try:
            encoded = self.model.encode(units, threads) if units else iter([])
            for layout in layouts:
                ids: list[int] = []
                for n_units, after in layout:
                    for unit_ids in islice(encoded, n_units):
                        ids += unit_ids
                    ids += after
                yield ids
        except (TypeError, UnicodeEncodeError):
            surrogate = next(filter(None, map(_SURROGATE.search, units)))[0]
            raise TokenizerError(
                f"text holds a lone surrogate (U+{ord(surrogate):04X}), which is not valid "
                "Unicode; remove it or decode the source properly"
            ) from None

    def at_specials(self, text: str) -> list[str]:
        """`text` cut where something stands for a special token, as chat templates mean it: text,
        special token, text, and so on.
        """
        return self._specials.split(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; EOS and PAD write nothing, bytes that are no UTF-8 become U+FFFD."""
        numbers = [int(i) for i in ids]
        if numbers and not 0 <= min(numbers) <= max(numbers) < self.vocab_size:
            low, high = min(numbers), max(numbers)
            raise TokenizerError(
                f"cannot decode ids {low}..{high}: the vocabulary is 0..{self.vocab_size - 1}"
            )
        return b"".join(self.token_bytes[i] for i in numbers).decode("utf-8", "replace")

    def _in_bytes(self, character: str) -> list[int]:
        """The ids of a character that is encoded as bytes; of "", none."""
        if not character:
            return []
        ids = self.model.byte_ids
        if ids is None:
            raise TokenizerError(f"the tokenizer has no bytes to encode {character!r} with")
        return [ids[byte] for byte in character.encode()]
