"""Small tokenizers like those of other models: Hugging Face folders without a model."""

from __future__ import annotations

import io
import json
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from tokenizers.decoders import ByteLevel

TEXT = Path(__file__).read_text() * 4 + " naïve café 日本語\n" * 9
QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(
    folder: Path, vocab_size: int = 320, cut: str | None = QWEN, whole: bool = False
) -> Path:
    """Like Qwen's: NFC, its pre-tokenisation, three special tokens and an added one that is not.

    Args:
        cut: a regular expression; None: GPT-2's. whole: a word that is a piece stays whole.
    """
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole))
    tokenizer.normalizer = normalizers.NFC()
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut is None)
    tokenizer.pre_tokenizer = as_bytes
    if cut is not None:
        cuts = pre_tokenizers.Split(Regex(cut), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cuts, as_bytes])
    tokenizer.decoder = ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    _configure(folder, "Qwen2Tokenizer", eos_token="<|im_end|>", pad_token="<|endoftext|>")
    return folder


def sentences(folder: Path, **options: object) -> Path:
    """Like Llama 2's: a space in front, no PAD, without our seal."""
    usual = {
        "model_type": "bpe", "vocab_size": 400, "byte_fallback": True, "minloglevel": 2,
        "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
    }  # fmt: skip
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()), model_writer=model, **(usual | options)
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    _configure(folder, "LlamaTokenizer", eos_token="</s>", bos_token="<s>", unk_token="<unk>")
    return folder


def _configure(folder: Path, kind: str, **tokens: str) -> None:
    config = {"tokenizer_class": kind, "split_special_tokens": True} | tokens
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
