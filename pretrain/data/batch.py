"""Batch: token windows, which positions are scored, and where documents begin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

IGNORE = -100  # the target at positions that are not scored


@dataclass
class Batch:
    """B sequences of T tokens, read in W = ceil(T / L) windows of L tokens (the last may be
    shorter).

    Batches are on the CPU, so that the loop can decide without a device synchronisation which
    windows are scored and which sleep.
    """

    tokens: Tensor  # [B, T] int64
    # [B, T] int64: the token to predict at each position, IGNORE where none is scored
    targets: Tensor
    valid: Tensor  # [B, T] bool: False at PAD, which does not write, decay, get attended or scored
    starts: Tensor  # [B, W] bool: a document begins with this window, with zero fast weights
    carries: Tensor  # [B] bool: the row's document continues in the next batch, with its S

    @property
    def size(self) -> tuple[int, int]:
        """(B, T)."""
        return self.tokens.shape[0], self.tokens.shape[1]

    def rows(self, start: int, stop: int) -> Self:
        """The microbatch of rows start..stop-1."""
        return type(self)(*(getattr(self, f.name)[start:stop] for f in fields(self)))

    def split(self, count: int) -> list[Self]:
        """Its rows in `count` equal microbatches."""
        each = self.size[0] // count
        return [self.rows(m * each, (m + 1) * each) for m in range(count)]


def joined(batches: Sequence[Batch]) -> Batch:
    """All of their rows."""
    first = batches[0]
    return type(first)(
        *(torch.cat([getattr(batch, f.name) for batch in batches]) for f in fields(first))
    )
