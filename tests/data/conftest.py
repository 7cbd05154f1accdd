"""Small corpora and their shards, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.config.schema import CorpusConfig, DataConfig
from pretrain.data.corpus import Corpus
from pretrain.data.prepare import prepare
from pretrain.data.shards import verify
from tests.data.small import SETTINGS
from tests.data.texts import make_texts, write_texts
from tokenizer.encode import Tokenizer
from tokenizer.train import train


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "other.model"
    train(make_texts(60, seed=9), path, vocab_size=321)
    return path


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """40 short documents, and one that is longer than many sequences."""
    return make_texts(40, seed=1) + ["".join(make_texts(30, seed=2))]


@pytest.fixture(scope="session")
def folder(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], tokenizer: Tokenizer
) -> Path:
    """`texts` in three shards, with nothing held out."""
    root = tmp_path_factory.mktemp("corpus")
    prepare(
        Corpus([write_texts(root / "texts", texts)]),
        tokenizer,
        root / "out",
        holdout=0,
        shard_tokens=1500,
        workers=1,
    )
    return root / "out"


@pytest.fixture
def config(folder: Path, model: Path) -> DataConfig:
    return DataConfig(tokenizer=str(model), train=[CorpusConfig(path=str(folder))], windows=3)


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 files, which with small shards make several units."""
    return write_texts(tmp_path_factory.mktemp("parts") / "texts", make_texts(60, seed=4))


@pytest.fixture(scope="session")
def prepared(source: Path, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`source` as one process prepares it, with SETTINGS."""
    out = tmp_path_factory.mktemp("whole") / "out"
    prepare(Corpus([source]), tokenizer, out, **SETTINGS)
    assert verify(out) == []
    return out
