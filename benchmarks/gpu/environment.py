"""Describes the environment, and measures its limits: matrix products, copies, launches.

python -m benchmarks.gpu.environment
"""

from __future__ import annotations

import importlib.metadata
import platform
import time

import torch

from benchmarks.gpu.record import device, is_tiny, record, seconds, synchronize

PACKAGES = (
    "torch", "triton", "deepspeed", "megatron-core", "webdataset", "transformers",
    "flash-linear-attention", "fla-core", "numpy", "safetensors", "sentencepiece", "psutil",
    "einops", "msgpack", "rich", "tensorboard", "pyarrow", "pytest", "pytest-xdist",
)  # fmt: skip


def main() -> None:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    on = torch.cuda.get_device_name() if device().type == "cuda" else platform.machine()
    record("machine", device=on, python=platform.python_version(), **found)
    if device().type == "cuda":
        free, total = torch.cuda.mem_get_info()
        record("memory", free_gib=free / 2**30, total_gib=total / 2**30, cuda=torch.version.cuda)

    n = 256 if is_tiny() else 8192
    a, b = (torch.randn(n, n, device=device(), dtype=torch.bfloat16) for _ in range(2))
    product = seconds(lambda: a @ b, repeats=20)
    record("ceiling: bf16 product", n=n, tflops=2 * n**3 / product / 1e12)
    size = 1 << (20 if is_tiny() else 32)
    source = torch.randint(0, 255, (size,), device=device(), dtype=torch.uint8)
    target = torch.empty_like(source)
    copy = seconds(lambda: target.copy_(source), repeats=10)
    record("ceiling: copy", tb_per_s=2 * size / copy / 1e12)
    x = torch.zeros(1, device=device())
    synchronize()
    begin = time.perf_counter()
    for _ in range(2000):
        x.add_(1)
    enqueued = time.perf_counter() - begin
    record("ceiling: launches", us_per_launch=enqueued / 2000 * 1e6)


if __name__ == "__main__":
    main()
