"""Bits per byte: loss per byte of the scored tokens' text, however it is tokenised."""

import math
from pathlib import Path

import pytest
import torch

from pretrain import evaluate
from pretrain.data.batch import IGNORE
from tests.model.tiny import MODEL, L, build, change, sequences
from tokenizer.encode import Tokenizer


def test_bits_are_counted_by_the_bytes_of_the_targets_and_loss_by_row() -> None:
    model = build(change(passes=2), dtype=torch.float32)
    batch = sequences(3 * L, unscored={0: [1]})
    size = torch.arange(MODEL.vocab_size) % 4
    metrics = evaluate.Evaluation([batch], L, 1, None, token_bytes=size).run(model, by_row=True)
    with torch.no_grad():
        windows = model(batch).window_loss / math.log(2)
    written = torch.where(batch.targets == IGNORE, 0, size[batch.targets.clamp(min=0)])
    by_window = written.view(2, 3, L).sum(dim=(0, 2))
    assert metrics["bits_per_byte"] == pytest.approx(float(windows.sum() / by_window.sum()), 1e-5)
    expected = (windows / by_window).tolist()
    assert metrics["bits_per_byte_per_window"] == pytest.approx(expected, rel=1e-5)
    scored = (batch.targets != IGNORE).sum(dim=1)
    by_row = torch.tensor(metrics["loss_per_row"]) @ scored.float()
    assert float(by_row) == pytest.approx(float(windows.sum()) * math.log(2), 1e-5)


def test_what_tokens_write_is_the_text(corpus: Path) -> None:
    tokenizer = Tokenizer.load(corpus / "small.model")
    text = "a day, a night;\n\tand 7 more: \u00e9\u4e16"
    ids = tokenizer.encode(text)
    assert b"".join(tokenizer.token_bytes[i] for i in ids).decode().lstrip() == text
