"""The trained tokenizer: text to ids and back, exactly."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

import sentencepiece

from tokenizer.cut import parts
from tokenizer.errors import TokenizerError
from tokenizer.seal import is_whole

MAX_BYTES = 1 << 26  # of a model file; a million pieces take less
SPACE = "\u2581"  # what sentencepiece writes for a space inside pieces
_SURROGATE = re.compile("[\ud800-\udfff]")


class Tokenizer:
    """A sentencepiece model that `tokenizer.train` made.

    vocab_size   number of ids
    eos, pad     ids that no text encodes to; so is unk, because of the byte fallback
    fingerprint  sha256 of the model file, by which shards know their tokenizer
    """

    def __init__(self, model: bytes, name: str = "tokenizer") -> None:
        """`model` is the content of a model file that is whole, `name` what errors call it."""
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
            self.vocab_size: int = self._model.vocab_size()
            self.eos: int = self._model.eos_id()
            self.pad: int = self._model.pad_id()
            self.unk: int = self._model.unk_id()
            self.fingerprint = hashlib.sha256(model).hexdigest()
            # U+2581 would be taken for a space; a space without a piece, for U+2581
            apart = SPACE if self._has_piece(SPACE) else f" {SPACE}"
            self._apart = re.compile(f"([{apart}])")
            self._as_bytes = {
                character: [
                    self._model.piece_to_id(f"<0x{byte:02X}>") for byte in character.encode()
                ]
                for character in apart
            }
            reason = self._unfit()
        except (RuntimeError, UnicodeDecodeError):
            reason = "not a sentencepiece model"
        if reason:
            raise TokenizerError(f"{name}: {reason}; train one with `hypnos tokenizer train`")
        self._file = model

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[bytes]]:
        """As another process takes it."""
        return Tokenizer, (self._file,)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a model file; TokenizerError names one that is missing, damaged or foreign."""
        try:
            with Path(path).open("rb") as file:
                model = file.read(min(os.fstat(file.fileno()).st_size, MAX_BYTES))
        except OSError as error:
            raise TokenizerError(f"{path}: cannot read the tokenizer: {error.strerror}") from None
        if not is_whole(model):
            raise TokenizerError(
                f"{path}: damaged, or no model of `hypnos tokenizer train`; "
                "copy it anew or train one with that"
            )
        return cls(model, str(path))

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without EOS. TokenizerError if it holds a lone surrogate."""
        return next(self.encode_many([text]))

    def encode_many(self, texts: Iterable[str], threads: int = 1) -> Iterator[list[int]]:
        """Ids of each text, in order, worked out by so many `threads` (long texts in parts)."""
        units: list[str] = []  # what sentencepiece sees
        layouts: list[list[tuple[int, list[int]]]] = []  # per text: units, and ids after them
        for text in texts:
            runs = [*self._apart.split(text), ""]  # a run, the character after it, a run, ...
            layout = []
            for run, character in zip(runs[::2], runs[1::2], strict=True):
                before = len(units)
                units += parts(run)
                layout.append((len(units) - before, self._as_bytes.get(character, [])))
            layouts.append(layout)
        try:
            encoded = iter(self._model.encode(units, num_threads=threads) if units else [])
        except TypeError:
            surrogate = next(filter(None, map(_SURROGATE.search, units)))[0]
            raise TokenizerError(
                f"text holds a lone surrogate (U+{ord(surrogate):04X}), which is no Unicode text; "
                "remove it or decode the source properly"
            ) from None
        for layout in layouts:
            ids: list[int] = []
            for n_units, after in layout:
                for unit_ids in islice(encoded, n_units):
                    ids += unit_ids
                ids += after
            yield ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; EOS and PAD write nothing, bytes that are no UTF-8 become U+FFFD."""
        numbers = [int(i) for i in ids]
        if numbers and not 0 <= min(numbers) <= max(numbers) < self.vocab_size:
            low, high = min(numbers), max(numbers)
            raise TokenizerError(
                f"cannot decode ids {low}..{high}: the vocabulary is 0..{self.vocab_size - 1}"
            )
        return self._model.decode(numbers) if numbers else ""

    def pieces(self) -> list[str]:
        """The piece of every id: U+2581 stands for a space, <0x0A> for a byte."""
        return [self._model.id_to_piece(i) for i in range(self.vocab_size)]

    def byte(self, i: int) -> int | None:
        """The byte that id `i` stands for; None if it is no single byte."""
        return int(self._model.id_to_piece(i)[3:5], 16) if self._model.is_byte(i) else None

    def written(self) -> list[bytes]:
        """What each id writes: a piece's text, a byte, or nothing."""
        return [
            piece.replace(SPACE, " ").encode()
            if self.is_text(i)
            else bytes([byte])
            if (byte := self.byte(i)) is not None
            else b""
            for i, piece in enumerate(self.pieces())
        ]

    def scores(self) -> list[float]:
        """The score of every id: of two pieces that could be joined, the better one is."""
        return [self._model.get_score(i) for i in range(self.vocab_size)]

    def is_text(self, i: int) -> bool:
        """Whether id `i` is a piece of text: neither a byte nor a special id."""
        return not (
            self._model.is_byte(i) or self._model.is_control(i) or self._model.is_unknown(i)
        )

    def _has_piece(self, piece: str) -> bool:
        return self.is_text(self._model.piece_to_id(piece))

    def _unfit(self) -> str | None:
        """Why this model cannot keep the promises above, or None."""
        if self.eos < 0 or self.pad < 0:
            return "the model has no EOS or no PAD id"
        if not all(map(self._model.is_byte, chain(*self._as_bytes.values()))):
            return "the model has no byte fallback, so it cannot write every text"
        if any(
            SPACE in piece.lstrip(SPACE) for i, piece in enumerate(self.pieces()) if self.is_text(i)
        ):
            return "the model has pieces that span words"
        probe = "  two  spaces\n\ttab \ufb01 e\u0301 \0 "
        prefixed = self._model.id_to_piece(self.encode("a")[0]).startswith(SPACE)
        if prefixed or self.decode(self.encode(probe)) != probe:
            return "the model changes text (normalisation, or a space added or dropped)"
        return None
