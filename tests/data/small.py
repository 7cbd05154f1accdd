"""A small corpus and its tokenizer, built anew wherever they are needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pretrain.data.corpus import Corpus
from pretrain.data.prepare import prepare
from tests.data.texts import make_texts, write_texts
from tokenizer.train import train

SETTINGS: dict[str, Any] = {"holdout": 0.3, "shard_tokens": 300, "workers": 1}  # of `prepare`


def make_corpus(root: Path) -> Path:
    """Makes ROOT/small.model and ROOT/shards with train and heldout; half of the documents are many
    sequences long.
    """
    texts = make_texts(12, seed=1) + ["".join(make_texts(4, seed=s)) for s in range(12)]
    tokenizer = train(texts, root / "small.model", vocab_size=320)
    prepare(Corpus([write_texts(root / "texts", texts)]), tokenizer, root / "shards", holdout=0.2)
    return root


def content(folder: Path) -> dict[str, bytes]:
    """The content of all files."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
