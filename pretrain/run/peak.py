"""The peak FLOP/s of a device: the denominator of MFU."""

from __future__ import annotations

import time
from functools import cache

import torch

# Dense bf16 matrix FLOP/s by a part of the device's name, from data sheets (V100, T4: fp16).
PEAKS = {
    "B200": 2.25e15, "GH200": 989e12, "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12,
    "H100": 989e12, "A100": 312e12, "A10G": 70e12, "A10": 125e12, "L40S": 362e12, "L40": 181e12,
    "L4": 121e12, "V100": 125e12, "T4": 65e12, "RTX 5090": 209.5e12, "RTX 4090": 165e12,
    "RTX 3090": 71e12, "MI300X": 1307e12, "MI250": 383e12,
}  # fmt: skip


@cache
def peak(device: torch.device) -> float | None:
    """Peak FLOP/s of a device: from the table for a GPU (None if it is not listed), measured in
    fp32 for a CPU, once per process.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return next((value for part, value in PEAKS.items() if part in name), None)
    a = torch.ones(768, 768)
    best, begin = float("inf"), time.perf_counter()
    while time.perf_counter() - begin < 0.2:
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * 768**3 / best
