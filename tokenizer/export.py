"""Exports to the Hugging Face fast format, with a report on whether the two tokenizers are equal.

The fast tokenizer is a BPE over characters with byte fallback, without normaliser or pre-tokeniser.
Its pieces have plain spaces instead of sentencepiece's U+2581, so a literal U+2581 falls back to
bytes there as it does here. sentencepiece scores pieces; the fast format ranks merges. Every way to
split a piece into two others becomes a merge, ordered by the piece's score.

Text that looks like a special token: `tokenizer_config.json` sets split_special_tokens, so
AutoTokenizer reads "</s>" in a text as ordinary text. The bare `tokenizers` library has no such
setting in its file and reads it as EOS.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as FastTokenizer
from transformers import AutoTokenizer

from tokenizer.encode import Tokenizer
from tokenizer.errors import TokenizerError
from tokenizer.files import write_atomic
from tokenizer.sentencepiece_model import SPACE, SentencePieceModel

SAMPLE = (
    "def sleep(window):\n    for n in range(2, N + 1):\n\t\th, S = core(h, S)  # pass\n",
    "  leading, trailing and     inner spaces   ",
    "\r\n\n\n\t \x00\x07\x7f\u00a0\u2028\ufeff",
    "naïve café, e\u0301 ﬁ Å ß, Ελληνικά, русский, हिन्दी, العربية, 日本語, 한국어",
    "👩🏽‍🚀🇪🇺 𝕳𝖞𝖕𝖓𝖔𝖘 \U0010ffff",
    "</s><pad><unk><0x41><|endoftext|> ▁▁ a▁b ▅",
    "=" * 79 + "\n" + " " * 77 + "\n" + "-" * 33 + "aaaaaaaaaaaaa" + "\n" * 9,
)


@dataclass
class Report:
    """Both tokenizers on the same texts: equal if there are no `differences` and no `inexact`."""

    texts: int = 0
    tokens: int = 0
    differences: list[str] = field(default_factory=list)  # texts whose ids differ, where and how
    inexact: list[str] = field(default_factory=list)  # texts the fast tokenizer changes

    @property
    def identical(self) -> bool:
        return not self.differences and not self.inexact

    def __str__(self) -> str:
        head = f"round trip over {self.texts:,} texts, {self.tokens:,} tokens: "
        if self.identical:
            return head + "ids and text identical"
        counts = (
            f"NOT IDENTICAL: ids differ in {len(self.differences)}, "
            f"text does not round-trip in {len(self.inexact)}"
        )
        return "\n  ".join([head + counts, *self.differences[:10], *self.inexact[:10]])


def export(tokenizer: Tokenizer, folder: str | Path, sample: Iterable[str] = ()) -> Report:
    """Write tokenizer.json and tokenizer_config.json into `folder`, load them back and compare.

    The comparison runs over built-in texts (Unicode, control characters, special-looking text, long
    runs) and over `sample`. The folder may hold other files, such as an exported model.
    """
    folder, model = Path(folder), sentencepiece_of(tokenizer)
    pieces = [
        piece.replace(SPACE, " ") if model.is_text(i) else piece
        for i, piece in enumerate(model.pieces())
    ]
    pad, eos, unk = pieces[model.pad], pieces[model.eos], pieces[model.unk]
    if len(set(pieces)) != len(pieces):
        raise TokenizerError(
            "cannot export the tokenizer: two ids have the same piece; train it again"
        )
    fast = FastTokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=_merges(model, pieces),
            unk_token=unk,
            byte_fallback=True,
        )
    )
    fast.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    fast.add_special_tokens(
        [AddedToken(p, normalized=False, special=True) for p in (pad, eos, unk)]
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": pad,
        "eos_token": eos,
        "unk_token": unk,
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    write_atomic(folder / "tokenizer.json", fast.to_str(pretty=False).encode())
    write_atomic(folder / "tokenizer_config.json", (json.dumps(config, indent=2) + "\n").encode())
    return compare(tokenizer, folder, (*SAMPLE, *sample))


def compare(tokenizer: Tokenizer, folder: str | Path, sample: Iterable[str]) -> Report:
    """Encode and decode every text of `sample` with both tokenizers."""
    fast = AutoTokenizer.from_pretrained(str(folder))
    report = Report()
    for number, text in enumerate(sample):
        ours = tokenizer.encode(text)
        theirs = fast.encode(text, add_special_tokens=False)
        report.texts += 1
        report.tokens += len(ours)
        if ours != theirs:
            same = (a == b for a, b in zip(ours, theirs, strict=False))
            at = sum(takewhile(bool, same))
            report.differences.append(
                f"text {number} ({text[:40]!r}): token {at}, ids {ours[at : at + 4]} became "
                f"{theirs[at : at + 4]}"
            )
        if fast.decode(theirs) != text:
            report.inexact.append(f"text {number} ({text[:40]!r}) does not round-trip")
    return report


def sentencepiece_of(tokenizer: Tokenizer) -> SentencePieceModel:
    """The sentencepiece model of a tokenizer. TokenizerError: it has none."""
    if isinstance(tokenizer.model, SentencePieceModel):
        return tokenizer.model
    raise TokenizerError(
        "the tokenizer comes from another model; transformers reads that model's own files"
    )


def _merges(model: SentencePieceModel, pieces: list[str]) -> list[tuple[str, str]]:
    """Every pair of pieces that forms a piece, best piece first.

    sentencepiece numbers BPE pieces in the order in which it learned them, multi-character ones
    first, which is the order of their scores.
    """
    text = {piece for i, piece in enumerate(pieces) if model.is_text(i)}
    return [
        (piece[:cut], piece[cut:])
        for i, piece in enumerate(pieces)
        if model.is_text(i)
        for cut in range(1, len(piece))
        if piece[:cut] in text and piece[cut:] in text
    ]
