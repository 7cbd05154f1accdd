"""What a training step reads: token windows, what is scored in them, and where documents begin."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

from torch import Tensor

IGNORE = -100  # target of a position that is not scored


@dataclass
class Batch:
    """B sequences of T tokens, read in W = ceil(T / L) windows of L tokens (the last may be
    shorter).

    Data comes on the CPU, so that the loop can decide which windows are scored and which
    sleep without asking the device.
    """

    tokens: Tensor  # [B, T] int64
    # [B, T] int64: the token to predict at each position, IGNORE where none is scored
    targets: Tensor
    valid: Tensor  # [B, T] bool: False at PAD, which neither writes, decays, is attended nor scored
    starts: Tensor  # [B, W] bool: a document begins with this window, so its fast weights are zero
    carries: Tensor  # [B] bool: the row's document goes on in the next batch, and so does its S

    @property
    def size(self) -> tuple[int, int]:
        """(B, T)."""
        return self.tokens.shape[0], self.tokens.shape[1]

    def rows(self, start: int, stop: int) -> Self:
        """The microbatch of rows start..stop-1."""
        return type(self)(*(getattr(self, f.name)[start:stop] for f in fields(self)))
