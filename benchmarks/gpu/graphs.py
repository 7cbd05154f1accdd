"""Measures the gain of CUDA graphs of units for a model too small for the host to keep up.

    python -m benchmarks.gpu.graphs

Forward and backward of Rule 110 at the paper's size (configs/rule110.toml): seconds, tokens/s, and
launches as the profiler counts them, with units run kernel by kernel and with units replayed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.command import described
from benchmarks.gpu.record import device, record, seconds
from parallel import mesh
from pretrain.config.load import load
from pretrain.model.sleep import SleepLM
from pretrain.tasks import make_task
from pretrain.tasks.source import TaskSource

CONFIG = Path(__file__).parents[2] / "configs" / "rule110.toml"


def main() -> int:
    described(__doc__).parse_args()
    if device().type != "cuda":
        print("left out on a CPU: CUDA graphs of units")
        return 0
    mesh.initialize()
    config = load(CONFIG)
    source = TaskSource(make_task(config, config.sleep.window), config.train.batch, seed=0)
    config.model.vocab_size = source.vocab_size
    batch = source.next()
    model = SleepLM(config.model, config.sleep).initialize(0).to(device(), torch.bfloat16)
    losses = []

    def run() -> None:
        out = model(batch, recompute="unit")
        (out.loss / batch.size[0]).backward()
        losses.append(out.loss.detach())
        model.zero_grad(set_to_none=False)

    for what in ("units run", "units replayed"):
        took = seconds(run)
        numbers = {"tokens_per_s": batch.tokens.numel() / took, "loss": float(losses[-1])}
        record(what, seconds=took, **launches(run), **numbers)
        model.graph_units()
    mesh.shutdown()
    return 0


def launches(run: Callable[[], None]) -> dict[str, int]:
    """What the host launches on the device in a run, and the kernels that the device runs."""
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activity.CPU, activity.CUDA]) as found:
        run()
        torch.cuda.synchronize()
    host = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemcpy", "cudaMemset")
    by_host = [e for e in found.events() if e.name.startswith(host)]
    kernels = [e for e in found.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return {"launches": len(by_host), "kernels": len(kernels)}


if __name__ == "__main__":
    sys.exit(main())
