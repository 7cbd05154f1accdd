"""One small tokenizer for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenizer.encode import Tokenizer
from tokenizer.train import train

CORPUS = [
    Path(__file__).with_name(name).read_text() * 4 for name in ("test_train.py", "test_encode.py")
] + ["    " * 30 + "=" * 79 + "\n\n\n" + "-" * 40 + " naïve café 日本語\n" * 20]


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    return CORPUS


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "small.model"
    train(CORPUS, path, vocab_size=640)
    return path


@pytest.fixture(scope="session")
def tokenizer(model: Path) -> Tokenizer:
    return Tokenizer.load(model)
