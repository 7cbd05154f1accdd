"""Runs transformers' Qwen3.5 code in fp64.

That code casts to fp32 by name in its norms, gates, softmax and delta rule. Comparing in fp32
leaves a tolerance that a wrong epsilon would fit into; with the casts lifted to fp64 nothing fits.
"""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from transformers.models.qwen3_5 import modeling_qwen3_5


class _DoubleTorch:
    """The torch module with another idea of what a float is."""

    float = float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextlib.contextmanager
def in_double(active: bool = True) -> Iterator[None]:
    """Inside, `torch.float32` and `.float()` of transformers' Qwen3.5 mean fp64 (nothing changes if
    not active).
    """
    if not active:
        yield
        return
    with (
        mock.patch.object(modeling_qwen3_5, "torch", _DoubleTorch()),
        mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
    ):
        yield
