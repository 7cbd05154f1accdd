"""What layers keep for backward."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from parallel.layers import project


@pytest.mark.parametrize("count", [1, 2, 3])
def test_zero_3_frees_the_weights_of_linears_on_cuda(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a unit that is recomputed holds the weights of all its blocks, however many were
    released meanwhile.
    """
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    weights = [nn.Parameter(torch.randn(5, 3)) for _ in range(count)]
    for weight in weights:
        weight.ds_status = "AVAILABLE"  # type: ignore[attr-defined]
    held = [StorageWeakRef(weight.untyped_storage()) for weight in weights]
    x = torch.randn(2, 4, 3, requires_grad=True)
    y = project(x, *(SimpleNamespace(weight=weight) for weight in weights))  # type: ignore[arg-type]
    assert not any(storage.expired() for storage in held)
    for weight in weights:
        weight.data = torch.empty(0)
    assert all(storage.expired() for storage in held)
    assert all(part.requires_grad for part in y)
