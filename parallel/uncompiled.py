"""Engines imported without the compiler that they would load where they define functions.

Megatron and DeepSpeed wrap a few functions in `torch.compile` where they are defined. That imports
all of TorchInductor, a third of the start of every command, for functions that are never called
here: our layers use Megatron's linears, embedding and cross-entropy, and our own optimiser.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import torch


def uncompiled() -> AbstractContextManager[Any]:
    """Inside, `torch.compile` gives the function that it is given, as it is."""
    return patch.object(torch, "compile", _not_compiled)


def _not_compiled(function: Callable[..., Any] | None = None, **_: Any) -> Callable[..., Any]:
    """As decorator, with arguments and without."""
    return (lambda given: given) if function is None else function
