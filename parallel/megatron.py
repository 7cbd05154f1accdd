"""What we take from Megatron-core, imported without the compiler that it would load.

Megatron wraps a few fused functions in `torch.compile` where they are defined. That imports all of
TorchInductor, a third of the start of every command, for functions that are never called here:
our layers use its linears, embedding and cross-entropy, which are not compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch


def _not_compiled(function: Callable[..., Any] | None = None, **_: Any) -> Callable[..., Any]:
    """`torch.compile` as decorator, with arguments and without: gives the function as it is."""
    return (lambda given: given) if function is None else function


with patch.object(torch, "compile", _not_compiled):
    from megatron.core import parallel_state
    from megatron.core.model_parallel_config import ModelParallelConfig
    from megatron.core.tensor_parallel import mappings, vocab_parallel_cross_entropy
    from megatron.core.tensor_parallel.layers import (
        ColumnParallelLinear,
        RowParallelLinear,
        VocabParallelEmbedding,
        set_tensor_model_parallel_attributes,
    )
    from megatron.core.tensor_parallel.mappings import (
        copy_to_tensor_model_parallel_region,
        gather_from_sequence_parallel_region,
        gather_from_tensor_model_parallel_region,
        reduce_from_tensor_model_parallel_region,
        scatter_to_sequence_parallel_region,
    )

__all__ = [
    "ColumnParallelLinear",
    "ModelParallelConfig",
    "RowParallelLinear",
    "VocabParallelEmbedding",
    "copy_to_tensor_model_parallel_region",
    "gather_from_sequence_parallel_region",
    "gather_from_tensor_model_parallel_region",
    "mappings",
    "parallel_state",
    "reduce_from_tensor_model_parallel_region",
    "scatter_to_sequence_parallel_region",
    "set_tensor_model_parallel_attributes",
    "vocab_parallel_cross_entropy",
]
