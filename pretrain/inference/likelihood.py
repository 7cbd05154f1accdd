"""Log-likelihoods of texts under a model that sleeps, for evaluation harnesses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from pretrain.inference.decode import Decoder
from pretrain.inference.session import Session


class Likelihood(NamedTuple):
    """The likelihood of a continuation."""

    logprob: float  # nats, summed over its tokens
    is_greedy: bool  # every token is the most likely one


def likelihood(
    decoder: Decoder, context: Sequence[int], continuation: Sequence[int], passes: int | None = None
) -> Likelihood:
    """Reads the context and then the continuation in a new session, which sleeps whenever its
    window is full, and scores the continuation.

    Args:
        context: at least one token, such as EOS.
        continuation: at least one token.
        passes: N over each full window, if not the trained one.
    """
    session, ids = Session(decoder, passes), [*context, *continuation]
    logits = session.read(ids[:-1], every=True)  # [T, vocabulary]
    logprobs = logits[len(context) - 1 :].double().log_softmax(dim=-1)
    targets = torch.tensor(list(continuation), device=logprobs.device)
    found = logprobs.gather(1, targets[:, None]).sum()
    return Likelihood(float(found), bool((logprobs.argmax(dim=-1) == targets).all()))
