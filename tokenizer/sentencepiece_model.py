"""The pieces of a sentencepiece model, ours or another's, such as Llama's.

The model's normalisation of texts (a space in front, Unicode normalisation, dropped spaces) is
turned off, so that ids encode the text unchanged. A text's first word is then encoded like any word
without a space before it: our ids of " Hello" are those that others give "Hello".
"""

from __future__ import annotations

from collections.abc import Iterator

import sentencepiece

from tokenizer.errors import TokenizerError

SPACE = "\u2581"  # sentencepiece's mark for a space inside pieces
# In a protocol buffer the last occurrence of a field wins: normalizer_spec (3), with an empty
# character map (2), add_dummy_prefix (3) and remove_extra_whitespaces (4) false.
_AS_IS = b"\x1a\x06\x12\x00\x18\x00\x20\x00"


class SentencePieceModel:
    """See `tokenizer.encode.Model`; in addition

    unk          the id of the unknown piece; no text has it
    """

    def __init__(self, file: bytes) -> None:
        """`file` is a model file. TokenizerError: it is not one, or has no EOS."""
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=file + _AS_IS)
            pieces = self.pieces()
        except (RuntimeError, UnicodeDecodeError):
            raise TokenizerError("not a sentencepiece model") from None
        self._file = file
        self.vocab_size: int = len(pieces)
        self.eos: int = self._model.eos_id()
        self.unk: int = self._model.unk_id()
        if self.eos < 0:
            raise TokenizerError("the sentencepiece model has no EOS")
        self.pad: int = self._model.pad_id() if self._model.pad_id() >= 0 else self.eos
        self.token_bytes = [self._written(i, piece) for i, piece in enumerate(pieces)]
        bytes_ = {int(p[3:5], 16): i for i, p in enumerate(pieces) if self._model.is_byte(i)}
        self.byte_ids = [bytes_[byte] for byte in range(256)] if len(bytes_) == 256 else None
        self.swallowing = frozenset[str]()
        self.specials = {p: i for i, p in enumerate(pieces) if self._model.is_control(i)}
        # U+2581 would be taken for a space; and a space, if it has no piece, for U+2581
        self.apart = SPACE if self.is_text(self._model.piece_to_id(SPACE)) else f" {SPACE}"
        texts = (piece for i, piece in enumerate(pieces) if self.is_text(i))
        self.may_be_cut = not any(SPACE in piece.lstrip(SPACE) for piece in texts)

    def __reduce__(self) -> tuple[type[SentencePieceModel], tuple[bytes]]:
        return SentencePieceModel, (self._file,)

    def encode(self, texts: list[str], threads: int) -> Iterator[list[int]]:
        if threads == 1:  # for a list, even of one text, the library starts a thread
            encoded = (self._model.encode(text.encode()) for text in texts)
        else:
            encoded = self._model.encode(texts, num_threads=threads)
        for ids, text in zip(encoded, texts, strict=True):
            if self.byte_ids is None and self.unk in ids:
                unknown = next(c for c in text if self.unk in self._model.encode(c))
                raise TokenizerError(
                    f"the tokenizer has neither a piece for {unknown!r} nor bytes to encode it; "
                    "leave such texts out, or use another tokenizer"
                )
            yield ids

    def pieces(self) -> list[str]:
        """The piece of every id: U+2581 stands for a space, <0x0A> for a byte."""
        return [self._model.id_to_piece(i) for i in range(self._model.vocab_size())]

    def scores(self) -> list[float]:
        """The score of every id: of possible merges, the one with the best score comes first."""
        return [self._model.get_score(i) for i in range(self.vocab_size)]

    def is_text(self, i: int) -> bool:
        """Whether id `i` is a piece of text: neither a byte nor a special id."""
        return not (
            self._model.is_byte(i) or self._model.is_control(i) or self._model.is_unknown(i)
        )

    def _written(self, i: int, piece: str) -> bytes:
        if self._model.is_byte(i):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(SPACE, " ").encode() if self.is_text(i) else b""
