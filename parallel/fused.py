"""`@fused`: elementwise functions that become one kernel each on CUDA.

Between its matrix products a block has some sixty small operations. Run one by one on a GPU, each
reads and writes the whole residual stream, and costs the host a launch. `@fused` hands a function
of tensors to torch.compile (Inductor), forward and backward; it is compiled when first called and
again when shapes first vary, not for every shape, pass or block. What lies between these functions,
the matrix products and the delta rule, is not compiled: nothing that holds state is traced. On a
CPU they run eagerly, or in a form with a hand-written gradient.

TORCH_COMPILE_DISABLE=1, torch's own switch, makes them eager on CUDA too.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

P = ParamSpec("P")
R = TypeVar("R")
# A function is compiled once per combination of dtype, requires_grad and optional tensors.
MAX_VARIANTS = 64
_thread = threading.local()


def fused(function: Callable[P, R], by_hand: Callable[P, R] | None = None) -> Callable[P, R]:
    """A function of tensors, compiled on CUDA. The device of its first argument decides.

    Args:
        by_hand: the same function with a hand-written gradient, for the CPU, where every operation
            that autograd would add costs time.
    """

    @functools.cache
    def compiled() -> Callable[P, R]:
        return torch.compile(function)

    @functools.wraps(function)
    def run(*args: P.args, **named: P.kwargs) -> R:
        if not _is_compiled(args[0]):
            return (by_hand or function)(*args, **named)
        _raise_limit()
        return compiled()(*map(_as_tensor, args), **named)  # type: ignore[arg-type]

    return run


def _raise_limit() -> None:
    """Allows MAX_VARIANTS in this thread: torch 2.13's settings hold only in the thread that makes
    them, but backward, a server and sleep in the background have threads of their own.
    """
    if not hasattr(_thread, "limit"):
        _thread.limit = torch._dynamo.config.recompile_limit = MAX_VARIANTS


def _as_tensor(argument: object) -> object:
    """A parameter as a plain tensor. For a parameter, Inductor would assume without a check that
    every block's is 16-byte aligned if the first block's is; in ZeRO's flat vector they start
    anywhere.
    """
    return argument.view_as(argument) if isinstance(argument, nn.Parameter) else argument


def _is_compiled(first: object) -> bool:
    return isinstance(first, Tensor) and first.is_cuda
