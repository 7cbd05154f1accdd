"""The pieces of a tokenizer.json, through Hugging Face's `tokenizers`.

It is a byte-level BPE, like Qwen's and Llama 3's, or one over characters with byte fallback, like
Llama 2's and Gemma's.

Its normalisation of texts (NFC, a space in front) is turned off, so that ids encode the text
unchanged; text that is in NFC has the same ids either way. Special tokens inside a text are
ordinary text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from tokenizer.errors import TokenizerError
from tokenizer.sentencepiece_model import SPACE

# Byte-level BPE represents each byte by a character: printable ones by themselves, the others from
# U+0100 on (GPT-2, Radford et al. 2019).
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTES = {chr(b): b for b in _PRINTABLE} | {chr(256 + i): b for i, b in enumerate(_OTHERS)}


class FastModel:
    """See `tokenizer.encode.Model`."""

    byte_ids: list[int] | None  # never None
    may_be_cut = False  # each tokenizer.json has its own pre-tokenizer

    def __init__(self, file: bytes, eos: str, pad: str | None) -> None:
        """`file` is a tokenizer.json, `eos` and `pad` are tokens of it; without `pad`, EOS is used.

        TokenizerError: it cannot be read, or cannot encode every text.
        """
        self._fast, self.is_byte_level = _read(file)
        self._made_of = file, eos, pad
        vocabulary = self._fast.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        self.eos = self._special(eos)
        self.pad = self.eos if pad is None else self._special(pad)
        self.apart = "" if self.is_byte_level else SPACE
        names = BYTES if self.is_byte_level else {f"<0x{b:02X}>": b for b in range(256)}
        if missing := [name for name in names if name not in vocabulary]:
            raise TokenizerError(f"tokenizer.json: has no token for the byte {missing[0]!r}")
        self.byte_ids = [vocabulary[name] for name in sorted(names, key=names.__getitem__)]
        self.token_bytes = [b""] * self.vocab_size
        for piece, i in vocabulary.items():
            self.token_bytes[i] = self._written(piece)
        self.specials: dict[str, int] = {}
        added = self._fast.get_added_tokens_decoder()
        strip = (token for token in added.values() if token.lstrip or token.rstrip)
        self.swallowing = frozenset(token.content for token in strip)
        for i, token in added.items():
            if token.special:
                self.specials[token.content] = i
            elif token.content in self.swallowing:
                raise TokenizerError(f"tokenizer.json: {token.content!r} swallows spaces")
            self.token_bytes[i] = b"" if token.special else token.content.encode()

    def __reduce__(self) -> tuple[type[FastModel], tuple[bytes, str, str | None]]:
        return FastModel, self._made_of

    @property
    def described(self) -> dict[str, Any]:
        """The parsed file: vocabulary, merges, added tokens, pre-tokenizer."""
        described: dict[str, Any] = json.loads(self._made_of[0])
        return described

    def encode(self, texts: list[str], threads: int) -> Iterator[list[int]]:
        if threads == 1:
            return map(self._encode, texts)
        with ThreadPoolExecutor(threads) as pool:
            return iter(list(pool.map(self._encode, texts)))

    def _encode(self, text: str) -> list[int]:
        # as a batch of one: batches are encoded without holding the GIL
        return self._fast.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def _written(self, piece: str) -> bytes:
        if self.is_byte_level:
            return bytes(BYTES[c] for c in piece) if BYTES.keys() >= set(piece) else b""
        if len(piece) == 6 and piece.startswith("<0x"):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(SPACE, " ").encode()

    def _special(self, token: str) -> int:
        found: int | None = self._fast.token_to_id(token)
        if found is None:
            raise TokenizerError(f"tokenizer.json: has no token {token!r}")
        return found


def _read(file: bytes) -> tuple[FastTokenizer, bool]:
    """The tokenizer of a file, with normalisation turned off; and whether it is a byte-level
    BPE.
    """
    try:
        described = json.loads(file)
        model, pre_tokenizer = described["model"], described["pre_tokenizer"]
        is_byte_level = '"ByteLevel"' in json.dumps(pre_tokenizer)
        if model.get("type", "BPE") != "BPE" or not (is_byte_level or model.get("byte_fallback")):
            raise TokenizerError("tokenizer.json: not a BPE that can encode every byte")
        described["normalizer"] = _as_is(described["normalizer"])
        _without_space(pre_tokenizer)
        model["dropout"] = None
        fast = FastTokenizer.from_str(json.dumps(described))
    except TokenizerError:
        raise
    except Exception as error:  # the library has no exception class of its own
        why = " ".join(str(error).split())[:100]
        raise TokenizerError(f"tokenizer.json: not a readable tokenizer ({why})") from None
    fast.no_truncation()
    fast.no_padding()
    fast.encode_special_tokens = True
    return fast, is_byte_level


def _as_is(normalizer: Any) -> Any:
    """What is kept of a normaliser: only the replacement of spaces by U+2581."""
    if normalizer is None or normalizer["type"] in ("NFC", "Prepend"):
        return None
    if normalizer["type"] == "Sequence":
        parts = [part for each in normalizer["normalizers"] if (part := _as_is(each))]
        return {"type": "Sequence", "normalizers": parts} if parts else None
    is_space = normalizer.get("pattern") == {"String": " "} and normalizer.get("content") == SPACE
    if normalizer["type"] == "Replace" and is_space:
        return normalizer
    raise TokenizerError(f"tokenizer.json: changes text (normalizer {normalizer['type']})")


def _without_space(pre_tokenizer: Any) -> None:
    """Turns off the space that is put in front of a text."""
    match pre_tokenizer:
        case {"type": "Sequence"}:
            for each in pre_tokenizer["pretokenizers"]:
                _without_space(each)
        case {"type": "ByteLevel"}:
            pre_tokenizer["add_prefix_space"] = False
        case {"type": "Metaspace"}:
            pre_tokenizer["prepend_scheme"] = "never"
            pre_tokenizer.pop("add_prefix_space", None)  # its older name
