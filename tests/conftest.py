"""One process, one thread, a world of one; and a small tokenizer."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from parallel import mesh
from tests.data.texts import make_texts
from tokenizer.encode import Tokenizer
from tokenizer.train import train

torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other


@pytest.fixture(scope="session", autouse=True)
def _world_of_one() -> Iterator[None]:
    mesh.initialize()
    yield
    mesh.shutdown()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer's file."""
    path = tmp_path_factory.mktemp("tokenizer") / "small.model"
    train(make_texts(60, seed=9), path, vocab_size=320)
    return path


@pytest.fixture(scope="session")
def tokenizer(model: Path) -> Tokenizer:
    return Tokenizer.load(model)
