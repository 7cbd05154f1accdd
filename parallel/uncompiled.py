"""Disables `torch.compile` while Megatron and DeepSpeed are imported, so that commands start fast.

Both decorate a few functions with `torch.compile`. That imports all of TorchInductor, a third of
the start-up time of every command, for functions that we never call: we use only Megatron's
linears, embedding and cross-entropy, and our own optimiser.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import torch


def uncompiled() -> AbstractContextManager[Any]:
    """Inside, `torch.compile` returns functions unchanged."""
    return patch.object(torch, "compile", _not_compiled)


def _not_compiled(function: Callable[..., Any] | None = None, **_: Any) -> Callable[..., Any]:
    """Works as a decorator with and without arguments."""
    return (lambda given: given) if function is None else function
