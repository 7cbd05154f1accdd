"""Runs transformers' Qwen3.5 code in fp64.

That code casts to fp32 by name in its norms, gates, softmax and delta rule. A comparison in fp32
needs a tolerance that would hide a wrong epsilon; with the casts lifted to fp64 it needs none.
"""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from transformers.models.qwen3_5 import modeling_qwen3_5


class _DoubleTorch:
    """The torch module with fp64 in place of fp32."""

    float = float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextlib.contextmanager
def in_double(active: bool = True) -> Iterator[None]:
    """In this context, `torch.float32` and `.float()` in transformers' Qwen3.5 mean fp64 (nothing
    changes if not active).
    """
    if not active:
        yield
        return
    with (
        mock.patch.object(modeling_qwen3_5, "torch", _DoubleTorch()),
        mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
    ):
        yield
