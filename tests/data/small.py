"""A small corpus and its tokenizer, made anew wherever they are needed."""

from __future__ import annotations

from pathlib import Path

from pretrain.data.corpus import Corpus
from pretrain.data.shards import prepare
from tests.data.texts import make_texts, write_texts
from tokenizer.train import train


def make_corpus(root: Path) -> Path:
    """ROOT/small.model and ROOT/shards with train and heldout; half of the documents are many
    sequences long.
    """
    texts = make_texts(12, seed=1) + ["".join(make_texts(4, seed=s)) for s in range(12)]
    tokenizer = train(texts, root / "small.model", vocab_size=320)
    prepare(Corpus([write_texts(root / "texts", texts)]), tokenizer, root / "shards", holdout=0.2)
    return root
