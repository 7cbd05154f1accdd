"""Measures a model of one size on this device: speed, time of a pass, memory, and a profile.

    python -m benchmarks.gpu.speed 100M
    python -m benchmarks.gpu.speed 1B

Forward and backward in bf16, without an optimiser unless it says "step". The same sizes in
transformers, whose Qwen3.5 also uses flash-linear-attention's kernels, read windows as separate
sequences. MFU is relative to the data sheet's dense bf16 rate, and counts the FLOPs of the model
(`pretrain.model.flops`), without recomputation.
"""

from __future__ import annotations

import gc
import math
import sys
import traceback
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from benchmarks.command import described
from benchmarks.gpu.record import device, folder, is_tiny, record, seconds
from benchmarks.gpu.sizes import SIZES, Size, size
from parallel import hopper, mesh
from parallel.engine import Engine
from pretrain.config.schema import OptimizerConfig, ParallelConfig
from pretrain.model.flops import parameters, step_flops
from pretrain.model.sleep import SleepLM
from pretrain.run.guard import mean_loss
from pretrain.run.optimizer import MuonAdamW
from pretrain.run.peak import peak
from pretrain.run.step import accumulate

BASE = "ours, N = 1"
OURS = "forward and backward"


def build(s: Size, passes: int, dtype: torch.dtype) -> SleepLM:
    """A model with random weights, drawn on the device."""
    model = SleepLM(s.model(), s.sleep(passes)).to(device())
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("A_log"):
                p.copy_(torch.linspace(math.log(0.001), math.log(0.1), len(p)))
            elif name.endswith("mixer.norm.weight"):
                p.fill_(1.0)
            elif p.dim() == 2:
                p.normal_(0.0, 0.5 if ".conv_" in name else 0.02)
            else:
                p.zero_()
    return model.to(dtype)


def forward_backward(
    s: Size, passes: int, recompute: str, rows: int
) -> tuple[Callable[[], Tensor], SleepLM]:
    """A function that runs it and returns the loss; and the model."""
    model, batch = build(s, passes, torch.bfloat16), s.batch(rows)
    scored = batch.targets.numel()

    def run() -> Tensor:
        loss = model(batch, recompute=recompute).loss / scored
        loss.backward()
        model.zero_grad()
        return loss.detach()

    return run, model


def rates(s: Size, passes: int, tokens: int, rows: int, took: float) -> dict[str, Any]:
    """Speed, FLOP/s and MFU of a run that read this many tokens."""
    work = step_flops(s.batch(rows), s.model(), s.sleep(passes))
    flops = work.flops * tokens / (rows * s.windows * s.window)
    best = peak(device())
    return {
        "seconds": took,
        "tokens_per_s": tokens / took,
        "tflops_per_s": flops / took / 1e12,
        "mfu": flops / took / best if best else None,
        "rows": rows,
    }


def throughput(s: Size, rows: int) -> None:
    """N = 1, without recomputation."""
    run, model = forward_backward(s, 1, "none", rows)
    took = seconds(run)
    numbers = rates(s, 1, rows * s.windows * s.window, rows, took)
    record(BASE, size=s.name, parameters=parameters(model.config), **numbers)
    profile(run, f"ours-{s.name}")


def profile(run: Callable[[], object], name: str) -> None:
    """Prints where the time of a run goes, kernel by kernel, and saves its trace (Perfetto)."""
    activity = torch.profiler.ProfilerActivity
    on_gpu = device().type == "cuda"
    with torch.profiler.profile(activities=[activity.CPU] + [activity.CUDA] * on_gpu) as found:
        run()
        torch.cuda.synchronize() if on_gpu else None
    sort = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    print(found.key_averages().table(sort_by=sort, row_limit=60, max_name_column_width=90))
    found.export_chrome_trace(str(folder() / f"trace-{name}.json.gz"))
    if on_gpu:
        kernels = [e for e in found.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        busy = sum(kernel.self_device_time_total for kernel in kernels) / 1e6
        record("profile", of=name, kernels=len(kernels), seconds_busy=busy)


def passes(s: Size, rows: int) -> None:
    """Time and FLOPs of N = 4 relative to N = 1, with units recomputed in both; on CUDA also with
    CUDA graphs.
    """
    for units in ("run", "replayed")[: 2 if device().type == "cuda" else 1]:
        took, flops, loss = {}, {}, {}
        for n in (1, 4):
            run, model = forward_backward(s, n, "unit", rows)
            if units == "replayed":
                model.graph_units()
            took[n], loss[n] = seconds(run, repeats=3), float(run())
            flops[n] = step_flops(s.batch(rows), s.model(), s.sleep(n)).flops
            del run, model
        by_time, by_flops = took[4] / took[1], flops[4] / flops[1]
        record(
            "a pass", size=s.name, rows=rows, units=units, seconds_1=took[1], seconds_4=took[4],
            time_ratio=by_time, flops_ratio=by_flops, over=by_time / by_flops,
            loss_1=loss[1], loss_4=loss[4],
        )  # fmt: skip


def memory(s: Size, rows: int) -> None:
    """Peak memory of forward and backward beyond weights and gradients, with units recomputed."""
    if device().type != "cuda":
        print("left out on a CPU: memory (benchmarks/memory.py weighs it there)")
        return
    held = {}
    for n in (1, 8):
        run, model = forward_backward(s, n, "unit", rows)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        held[n] = (torch.cuda.max_memory_allocated() - before) / 2**30
        del run, model
    ratio = held[8] / held[1]
    record("memory", size=s.name, rows=rows, gib_1=held[1], gib_8=held[8], ratio=ratio)


def transformers(s: Size, rows: int) -> None:
    """The same sizes in transformers."""
    if find_spec("fla") and device().type == "cuda":
        hopper.register()  # fla refuses one of its gradients on Hopper; both models use ours
    elif find_spec("fla"):
        print("left out on a CPU: flash-linear-attention's kernels")
        sys.modules["fla"] = None  # type: ignore[assignment]  # transformers would call them
    from benchmarks.hybrid import hybrid

    with device():
        model = hybrid(s.model()).to(torch.bfloat16)
    tokens = s.batch(rows).tokens.view(rows * s.windows, s.window).to(device())

    def run() -> None:
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        model.zero_grad()

    record("transformers", size=s.name, **rates(s, 1, tokens.numel(), rows, seconds(run)))
    profile(run, f"transformers-{s.name}")


def step(s: Size, rows: int) -> None:
    """Whole training steps: microbatches through DeepSpeed, Muon and AdamW."""
    model = build(s, 1, torch.float32)
    optimizer = MuonAdamW(model.named_parameters(), OptimizerConfig())
    engine = Engine(model, optimizer, zero=1, precision="bf16", microbatches=s.microbatches)
    batch = s.batch(rows * s.microbatches)
    parts = batch.split(s.microbatches)
    parallel = ParallelConfig(recompute="none")

    def run() -> None:
        scored = batch.targets.numel()
        outputs = accumulate(engine, model, parts, [None] * len(parts), scored, parallel)
        optimizer.loss = mean_loss([out.window_loss for out in outputs], scored)
        engine.step()

    took = seconds(run, repeats=3)
    record("step", size=s.name, **rates(s, 1, batch.tokens.numel(), rows, took))
    engine.close()


PARTS: dict[str, Callable[[Size, int], None]] = {
    "throughput": throughput, "passes": passes, "transformers": transformers, "memory": memory,
    "step": step,
}  # fmt: skip


def attempt(name: str, s: Size) -> bool:
    """Runs a part, with fewer rows if memory is too small; a failure is reported, and the others
    still run.
    """
    rows = s.rows
    while True:
        try:
            PARTS[name](s, rows)
            return True
        except torch.OutOfMemoryError:
            rows //= 2
            print(f"{name}: out of memory, trying {rows} rows", flush=True)
            if rows == 0:
                return False
        except Exception as error:
            traceback.print_exc()
            record("FAILED", part=name, size=s.name, error=f"{type(error).__name__}: {error}"[:300])
            return False
        finally:
            gc.collect()
            if device().type == "cuda":
                torch.cuda.empty_cache()


def main() -> int:
    parser = described(__doc__)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    args = parser.parse_args()
    mesh.initialize()
    if is_tiny():
        torch.set_num_threads(1)
    done = [attempt(name, size(args.size)) for name in args.parts or PARTS]
    mesh.shutdown()
    return not all(done)


if __name__ == "__main__":
    sys.exit(main())
