"""Elementwise functions that become one kernel each on CUDA.

Between its matrix products a block has some sixty small operations. Run one by one on a GPU, each
reads and writes the whole residual stream, and costs the host a launch. `@fused` hands a function
of tensors to torch.compile (Inductor), forward and backward; it is compiled when first called and
again when shapes begin to vary, not for every shape, pass or block. What is between two functions,
the products and the delta rule, stays as it is: nothing that holds state is traced. On a CPU they
run as they stand, or in a form with its gradient written out.

TORCH_COMPILE_DISABLE=1, torch's own switch, runs all of it as it stands on CUDA too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

P = ParamSpec("P")
R = TypeVar("R")
# A function is compiled once for each combination of dtype, gradient needed and optional tensors.
MAX_VARIANTS = 64


def fused(function: Callable[P, R], by_hand: Callable[P, R] | None = None) -> Callable[P, R]:
    """A function of tensors, compiled on CUDA. Its first argument says where it runs.

    Args:
        by_hand: the same function with its gradient written out, for the CPU: there every operation
            that autograd is spared counts.
    """

    @functools.cache
    def compiled() -> Callable[P, R]:
        torch._dynamo.config.recompile_limit = MAX_VARIANTS
        return torch.compile(function)

    @functools.wraps(function)
    def run(*args: P.args, **named: P.kwargs) -> R:
        if not _is_compiled(args[0]):
            return (by_hand or function)(*args, **named)
        return compiled()(*map(_as_tensor, args), **named)  # type: ignore[arg-type]

    return run


def _as_tensor(argument: object) -> object:
    """A parameter as any other tensor. Where the first block's begins at a multiple of 16 bytes
    Inductor would take it that every block's does, unseen; in ZeRO's flat vector they begin
    anywhere.
    """
    return argument.view_as(argument) if isinstance(argument, nn.Parameter) else argument


def _is_compiled(first: object) -> bool:
    return isinstance(first, Tensor) and first.is_cuda
