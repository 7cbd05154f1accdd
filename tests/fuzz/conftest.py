"""Small corpora to damage, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.data.corpus import Corpus
from pretrain.data.prepare import prepare
from tests.data.texts import make_texts, write_texts
from tokenizer.encode import Tokenizer


def make_corpus(root: Path, seed: int, tokenizer: Tokenizer) -> Path:
    """12 documents in several shards; two corpora of other seeds have other texts."""
    texts = make_texts(12, seed=seed, longest=3)
    prepare(
        Corpus([write_texts(root / "texts", texts)]),
        tokenizer,
        root / "out",
        holdout=0,
        shard_tokens=30,
        workers=1,
    )
    return root / "out" / "train"


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """The folder of an undamaged split."""
    return make_corpus(tmp_path_factory.mktemp("sound"), 1, tokenizer)


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """The folder of another corpus with the same tokenizer."""
    return make_corpus(tmp_path_factory.mktemp("foreign"), 2, tokenizer)
