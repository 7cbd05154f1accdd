"""One small tokenizer for the story tests in this folder."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pretrain.tasks.story_writer import write_story
from tokenizer.encode import Tokenizer
from tokenizer.train import train

SAMPLE = Path(__file__).parent / "data" / "gsm_infinite.jsonl"  # published records


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    written = [str(write_story(random.Random(i), 6, 6).record(6)["problem"]) for i in range(30)]
    return train(
        [SAMPLE.read_text(), *written],
        tmp_path_factory.mktemp("tokenizer") / "small.model",
        vocab_size=600,
    )
