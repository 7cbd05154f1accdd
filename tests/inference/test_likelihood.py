"""Likelihoods equal transformers' without sleep, and training's with sleep."""

from __future__ import annotations

import torch

from pretrain.inference.decode import Decoder
from pretrain.inference.likelihood import likelihood
from tests.model.tiny import build, change, sequences
from tests.oracles import qwen

TEXT = [3, 7, 7, 1, 12, 9, 4, 20, 15, 2, 2, 8, 11]


def test_of_one_window() -> None:
    model = build(change(passes=1, window=len(TEXT)), dtype=torch.float32)
    with torch.inference_mode():
        logits = qwen.from_hybrid(model)(torch.tensor([TEXT])).logits[0]
    expected = logits[4:-1].log_softmax(-1).gather(1, torch.tensor(TEXT[5:])[:, None]).sum()
    found = likelihood(Decoder(model), TEXT[:5], TEXT[5:])
    assert abs(found.logprob - float(expected)) < 1e-4 and not found.is_greedy
    best = int(logits[4].argmax())
    assert likelihood(Decoder(model), TEXT[:5], [best]).is_greedy


def test_with_sleep_it_is_the_loss_of_training() -> None:
    model = build(change(passes=3), dtype=torch.float32)
    decoder, batch = Decoder(model), sequences(16, rows=1)
    ids = [*batch.tokens[0].tolist(), int(batch.targets[0, -1])]
    by_n = {n: likelihood(decoder, ids[:1], ids[1:], passes=n).logprob for n in (1, 3)}
    for n, found in by_n.items():
        assert abs(found + float(model(batch, passes=n).loss.detach())) < 1e-3
    assert abs(by_n[1] - by_n[3]) > 1e-2  # sleep changes the likelihood
