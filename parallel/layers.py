"""The parameterised pieces that blocks are made of.

Linears and the embedding are Megatron's tensor-parallel layers, at every world size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
)
from torch import Tensor, nn

from parallel import mesh


def _initialized_by_the_model(weight: Tensor) -> None:
    """Megatron asks for an initialiser; the model draws every parameter itself, by name."""


class ColumnLinear(ColumnParallelLinear):
    """y = x W^T without bias; the output features are split over the tensor-parallel ranks."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            inputs,
            outputs,
            config=mesh.megatron_config(),
            init_method=_initialized_by_the_model,
            bias=False,
            tp_group=mesh.tp_group(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[0]


class RowLinear(RowParallelLinear):
    """y = x W^T without bias; the input features are split, and the ranks' results are summed."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            inputs,
            outputs,
            config=mesh.megatron_config(),
            init_method=_initialized_by_the_model,
            bias=False,
            input_is_parallel=True,
            skip_bias_add=False,
            tp_group=mesh.tp_group(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[0]


class Embedding(VocabParallelEmbedding):
    """Token ids [B, T] -> [B, T, D]; the vocabulary is split over the tensor-parallel ranks."""

    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__(
            vocab_size,
            d_model,
            init_method=_initialized_by_the_model,
            config=mesh.megatron_config(),
            tp_group=mesh.tp_group(),
        )


def at_least_fp32(x: Tensor) -> Tensor:
    """Half precisions become fp32; fp64, which the tests use, stays."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class RMSNorm(nn.Module):
    """x / rms(x) * (1 + weight) over the last dimension, zero-centred as in Qwen3.5: weight 0 is no scaling."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        scale = 1.0 + at_least_fp32(self.weight)
        return F.rms_norm(at_least_fp32(x), scale.shape, scale, self.eps).type_as(x)


class GatedRMSNorm(nn.Module):
    """x / rms(x) * weight * SiLU(gate) over the last dimension: the delta rule's read-out norm."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        weight = at_least_fp32(self.weight)
        normed = F.rms_norm(at_least_fp32(x), weight.shape, weight, self.eps).type_as(gate)
        return (normed * F.silu(at_least_fp32(gate))).type_as(gate)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each position, in at least fp32.

    Args:
        logits: [n, vocabulary of this rank]. targets: [n] int64, ids of the whole vocabulary.
    Returns:
        [n] losses in nats.
    """
    if mesh.tp_size() == 1:  # torch's own also takes fp64, which Megatron's rounds to fp32
        return F.cross_entropy(at_least_fp32(logits), targets, reduction="none")
    return vocab_parallel_cross_entropy(logits.unsqueeze(1), targets.unsqueeze(1)).squeeze(1)
