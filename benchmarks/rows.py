"""The rows that are read where their content does not matter."""

from __future__ import annotations

import torch

from pretrain.data.batch import Batch


def random_rows(count: int, windows: int, window: int, vocabulary: int) -> Batch:
    """Random tokens, the same each time; every row is one document, and every token is scored."""
    tokens = torch.randint(
        0, vocabulary, (count, windows * window), generator=torch.Generator().manual_seed(0)
    )
    starts = torch.arange(windows).expand(count, -1) == 0
    valid = torch.ones_like(tokens, dtype=torch.bool)
    return Batch(tokens, tokens.roll(-1, 1), valid, starts, torch.zeros(count, dtype=torch.bool))
