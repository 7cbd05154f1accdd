"""How likely a model that sleeps finds a text: what evaluation harnesses ask of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from pretrain.inference.decode import Decoder
from pretrain.inference.session import Session


class Likelihood(NamedTuple):
    """Of some tokens after others."""

    logprob: float  # nats, summed
    is_greedy: bool  # each of them is the likeliest


def likelihood(
    decoder: Decoder, context: Sequence[int], continuation: Sequence[int], passes: int | None = None
) -> Likelihood:
    """Reads the context and then the continuation in a new session, which sleeps whenever its
    window is full, and scores the continuation.

    Args:
        context: at least one token, such as EOS.
        continuation: at least one token.
        passes: N over each full window, if other than the model was trained with.
    """
    session, ids = Session(decoder, passes), [*context, *continuation]
    logits = session.read(ids[:-1], every=True)  # [T, vocabulary]
    logprobs = logits[len(context) - 1 :].double().log_softmax(dim=-1)
    targets = torch.tensor(list(continuation), device=logprobs.device)
    found = logprobs.gather(1, targets[:, None]).sum()
    return Likelihood(float(found), bool((logprobs.argmax(dim=-1) == targets).all()))
