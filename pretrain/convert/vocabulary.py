"""Converts a tokenizer to the terms of a GGUF file, and refuses those it cannot represent.

    "llama"   sentencepiece BPE: pieces and scores. Ours, and those of Llama 2's kind
    "gpt2"    byte-level BPE: pieces and merges. Those of Qwen, Llama 3, GPT-2

The pre-tokenizer, which splits a text before merges, is not part of the file: llama.cpp knows some
by name. A tokenizer.json has it as a regular expression, so only exact matches of known expressions
are written and all others refused: they would silently give other ids.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pretrain.errors import UserError
from tokenizer.encode import Model, Tokenizer
from tokenizer.fast_model import FastModel
from tokenizer.foreign import SENTENCEPIECE
from tokenizer.sentencepiece_model import SentencePieceModel

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # the file's numbers

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
# (regular expression, whether a word that is a piece is taken whole) -> llama.cpp's name.
CUTS = {
    (rf"{_WORDS}[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}",
     False): "qwen2",
    (rf"{_WORDS}[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
     rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}", False): "qwen35",
    (rf"{_WORDS}[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
     rf"|{_SPACES}", True): "llama-bpe",
    (None, False): "gpt-2",  # ByteLevel's own split
}  # fmt: skip


@dataclass(frozen=True)
class Vocabulary:
    """The values of tokenizer.ggml.*."""

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    eos: int
    pad: int
    scores: list[float] | None = None
    merges: list[str] | None = None
    unk: int | None = None
    chat: str = ""  # its chat template

    def padded(self, size: int) -> Vocabulary:
        """Padded with <unusedN> up to the model's vocabulary."""
        more, taken = size - len(self.tokens), set(self.tokens)
        names = (name for i in itertools.count() if (name := f"<unused{i}>") not in taken)
        return replace(
            self,
            tokens=self.tokens + list(itertools.islice(names, more)),
            types=self.types + [UNUSED] * more,
            scores=self.scores and self.scores + [-1e4] * more,
        )


def vocabulary(path: Path) -> Vocabulary:
    """The vocabulary of a tokenizer's file or folder. UserError: GGUF cannot represent it."""
    tokenizer = Tokenizer.load(path)
    try:
        return replace(_of(tokenizer.model, path / SENTENCEPIECE), chat=tokenizer.chat.template)
    except ValueError as error:
        raise UserError(f"{path}: {error}; export such a model with --to hf") from None


def _of(model: Model, own: Path) -> Vocabulary:
    if isinstance(model, SentencePieceModel):
        return _of_pieces(model)
    assert isinstance(model, FastModel)
    if model.is_byte_level:
        return _of_bytes(model)
    if not own.exists():  # as in folders written by transformers' save_pretrained
        why = "its tokenizer.json is not a byte-level BPE, and has no scores of its pieces"
        raise ValueError(f"{why}: put the {SENTENCEPIECE} beside it that it was made from")
    return _of_both(model, SentencePieceModel(own.read_bytes()))


def _of_pieces(model: SentencePieceModel) -> Vocabulary:
    scores = model.scores()
    of_text = [score for i, score in enumerate(scores) if model.is_text(i)]
    if not all(score.is_integer() for score in of_text):
        raise ValueError("a unigram tokenizer, which llama.cpp would apply differently")
    if of_text.count(0) > 1:
        raise ValueError("has user-defined pieces, which its file does not tell from learned ones")
    if model.byte_ids is None:
        raise ValueError("has no byte pieces, which llama.cpp needs")
    types = [_type(model, i) for i in range(model.vocab_size)]
    return Vocabulary(
        "llama", "default", model.pieces(), types, eos=model.eos, pad=model.pad, scores=scores,
        unk=model.unk,
    )  # fmt: skip


def _of_both(fast: FastModel, pieces: SentencePieceModel) -> Vocabulary:
    """For a tokenizer.json that was made from a tokenizer.model, and may have further tokens."""
    said, described = _of_pieces(pieces), fast.described
    vocabulary = described["model"]["vocab"]
    added = [token for token in described["added_tokens"] if token["id"] >= len(said.tokens)]
    ids = [token["id"] for token in added]
    if [vocabulary.get(piece) for piece in said.tokens] != list(range(len(said.tokens))):
        raise ValueError(f"its tokenizer.json and its {SENTENCEPIECE} have different ids")
    if ids != list(range(len(said.tokens), fast.vocab_size)):
        raise ValueError("its tokenizer.json skips ids")
    return replace(
        said,
        tokens=said.tokens + [token["content"] for token in added],
        types=said.types + [CONTROL if token["special"] else USER_DEFINED for token in added],
        scores=[*(said.scores or []), *(0.0 for _ in added)],
        eos=fast.eos,
        pad=fast.pad,
    )


def _type(model: SentencePieceModel, i: int) -> int:
    if model.is_text(i):
        return NORMAL
    if i == model.unk:
        return UNKNOWN
    return CONTROL if i in model.specials.values() else BYTE


def _of_bytes(model: FastModel) -> Vocabulary:
    described = model.described
    pre, bpe = _cut(described), described["model"]
    tokens, types = [""] * model.vocab_size, [UNUSED] * model.vocab_size
    for piece, i in bpe["vocab"].items():
        tokens[i], types[i] = piece, NORMAL
    for added in described["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    for i in [i for i, kind in enumerate(types) if kind == UNUSED]:
        tokens[i] = f"<id {i}>"
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in bpe["merges"]]
    return Vocabulary("gpt2", pre, tokens, types, eos=model.eos, pad=model.pad, merges=merges)


def _cut(described: dict[str, Any]) -> str:
    """llama.cpp's name for a tokenizer.json's pre-tokenizer. ValueError: it has none."""
    bpe, cuts = described["model"], described["pre_tokenizer"]
    steps = cuts["pretokenizers"] if cuts["type"] == "Sequence" else [cuts]
    pattern: str | None
    match steps:
        case [{"type": "ByteLevel"} as only] if only.get("use_regex", True):
            pattern = None
        case [
            {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Isolated"} as split,
            {"type": "ByteLevel", "use_regex": False},
        ] if not split.get("invert"):
            pattern = regex
        case _:
            raise ValueError(
                f"splits texts in a way that llama.cpp does not know: {json.dumps(steps)[:100]}"
            )
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if bpe.get(name):
            raise ValueError(f"its BPE has a {name}")
    known = CUTS.get((pattern, bool(bpe.get("ignore_merges"))))
    if known is None:
        raise ValueError(f"llama.cpp does not know how it splits texts: {pattern}")
    return known
