"""What torch.compile has to compile, seen on a CPU: its front end runs, its kernels do not."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from parallel import fused
from tests.gpu.problem import batch, build, loss_and_gradients


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # which the front end reads
def test_neither_passes_nor_windows_are_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """After two shapes, N may be drawn at random and batches may have any size."""
    model = build(torch.device("cpu"), torch.float32)
    expected = loss_and_gradients(model, batch(pad=True, rows=5), "unit", passes=4)[0]
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(fused, "_is_compiled", lambda first: True)
    torch._dynamo.reset()
    counters.clear()
    for rows, n in ((3, 1), (2, 2)):
        loss_and_gradients(model, batch(pad=True, rows=rows), passes=n)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 10
    found = loss_and_gradients(model, batch(pad=True, rows=5), "unit", passes=4)[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert counters["stats"]["unique_graphs"] == graphs
    torch._dynamo.reset()


def test_every_thread_may_compile_many_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backward runs in a thread of its own on CUDA, and so does a server."""

    def double(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(fused, "_is_compiled", lambda first: True)
    torch._dynamo.reset()
    counters.clear()
    run, many = fused.fused(double), 12  # torch's own limit is 8
    run(torch.ones(1))
    with ThreadPoolExecutor(1) as pool:
        for dims in range(2, many + 1):
            pool.submit(run, torch.ones([1] * dims)).result()
    assert counters["stats"]["unique_graphs"] == many
    torch._dynamo.reset()
