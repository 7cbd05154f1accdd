"""Measures memory or time of one stage's part of a training step; used by `benchmarks.memory`.

Blocks, recomputation and pipeline run as in the trainer (`pretrain/run/step.py`), but without
DeepSpeed; gradients are allocated before. A single stage runs the same code, as a pipeline without
messages, so that it is comparable with several.

    torchrun --nproc-per-node=P -m benchmarks.stage peak|seconds PLAN FILE

PLAN is the JSON of a `benchmarks.memory.Plan`. Rank 0 writes to FILE what
`benchmarks.memory.measure` returns.
"""

from __future__ import annotations

import ctypes
import gc
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.command import described
from benchmarks.memory import MIB, Peak, Plan, Weight, counted
from benchmarks.rise import rise
from benchmarks.rows import random_rows
from parallel import mesh
from parallel.block import Block
from parallel.schedule import step_schedule
from parallel.simulator import simulate
from parallel.stages import Stage, balanced
from parallel.state import DeltaState, State
from parallel.window import open_window
from pretrain.config.schema import ModelConfig, SleepConfig
from pretrain.data.batch import IGNORE, Batch
from pretrain.model.reader import Reader
from pretrain.model.sleep import SleepLM
from pretrain.run import step
from pretrain.study.block_work import BlockBytes


def build(p: Plan) -> SleepLM:
    """This rank's stage."""
    stage = Stage(mesh.pp_rank(), balanced([1.0] * len(p.layers), mesh.pp_size()))
    config = ModelConfig(
        d_model=p.width, layers=list(p.layers), vocab_size=p.vocabulary, mlp_width=4 * p.width
    )
    model = SleepLM(config, SleepConfig(window=p.window, when="context"), stage).initialize(0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return model


def microbatches(p: Plan) -> list[Batch]:
    """The rows of a step. Only the last window is scored; the others are slept over."""
    whole = random_rows(p.microbatches * p.rows, p.windows, p.window, p.vocabulary)
    whole.targets[:, : -p.window] = IGNORE
    return whole.split(p.microbatches)


def train(model: SleepLM, parts: list[Batch], policy: str, passes: int) -> None:
    """Forward and backward, as `pretrain.run.step.accumulate` does them on a stage."""
    streams = [
        step.StageStream(Reader.of(model, part, passes=passes, recompute=policy)) for part in parts
    ]
    step.run_stage(streams, policy, loss_scale=1.0)


# ---- memory


def resident() -> int:
    """Bytes of this process that are in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def peak(run: Callable[[], None]) -> int:
    """The most bytes that this process holds during a run, beyond what it held before."""
    gc.collect()
    # memory that is free but still resident would not count when it is used again
    ctypes.CDLL(None).malloc_trim(0)
    dist.barrier()
    return rise(resident, run)


def weigh(block: Block, rows: int, window: int) -> Weight:
    """Measures what autograd saves for one block: each storage once."""
    h = torch.randn(rows, window, block.shape.d_model, requires_grad=True)
    memory = block.empty_state(rows, h.device, h.dtype)
    writes = isinstance(memory, DeltaState)
    S = memory.S.requires_grad_() if writes else h[:0]
    state = State(
        (memory,), torch.zeros(rows, 0, dtype=torch.bool), torch.zeros(rows, dtype=torch.int64)
    )
    valid = torch.ones(rows, window, dtype=torch.bool)
    view = open_window(block.shape, state, valid, has_pad=False, width=window, sliding=False)
    weights = {parameter.untyped_storage().data_ptr() for parameter in block.parameters()}

    def saved(write_only: bool) -> int:
        sizes: dict[int, int] = {}  # by address; the graph holds them all, so none is reused

        def note(t: Tensor) -> Tensor:
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            graph = block(h, memory, view, write_only)
        del graph
        return sum(size for address, size in sizes.items() if address not in weights)

    whole, written = saved(False), saved(True) if writes else 0
    return Weight(BlockBytes(h.nbytes, S.nbytes, whole), BlockBytes(h.nbytes, S.nbytes, written))


def count(p: Plan, model: SleepLM, part: Batch, policy: str, passes: int) -> tuple[float, float]:
    """`counted`, and the bytes of one (h, S) for each of the units that are live at a time."""
    stage = model.stage
    passes_of_one = step.StageStream(Reader.of(model, part, passes=passes)).passes
    everyone = (passes_of_one,) * p.microbatches
    P = mesh.pp_size()
    timeline = simulate(step_schedule(everyone, P, policy), everyone, P)
    weights = [weigh(block, p.rows, p.window) for block in model.blocks_of(slice(None))]
    blocks = dict(zip(stage.blocks, weights, strict=True))
    stored = timeline.peak[stage.index] * (weights[0].whole.h + sum(w.whole.S for w in weights))
    return counted(policy, passes_of_one, timeline.spans[stage.index], blocks), stored


# ---- time


def seconds(run: Callable[[], None], repeats: int) -> float:
    """How long it takes: the fastest of some runs."""
    found = []
    for _ in range(repeats):
        gc.collect()
        dist.barrier()
        begin = time.perf_counter()
        run()
        found.append(time.perf_counter() - begin)
    return min(found)


def main(what: str, p: Plan, file: Path) -> None:
    """Goes through the plan's cases together with the other ranks."""
    torch.set_num_threads(1)
    mesh.initialize(pp=mesh.world_size())
    model, parts, results = build(p), microbatches(p), []
    for policy in p.policies:  # initialises libraries and connections
        train(model, parts, policy, 1)
    for policy, passes in p.cases:

        def run(policy: str = policy, passes: int = passes) -> None:
            train(model, parts, policy, passes)

        if what == "peak":
            mine = Peak(peak(run), *count(p, model, parts[0], policy, passes))
        else:
            mine = seconds(run, p.repeats)
        everyone = [mine] * mesh.pp_size()
        dist.all_gather_object(everyone, mine)
        results.append(everyone if what == "peak" else max(everyone))
        if dist.get_rank() == 0:
            if what == "peak":
                shown = f"{' / '.join(f'{x.held / MIB:.1f}' for x in everyone)} MiB"
            else:
                shown = f"{max(everyone):.2f} s"
            line = f"P = {mesh.pp_size()}, {policy}, N = {passes}: {shown}"
            print(line, file=sys.stderr, flush=True)
    if dist.get_rank() == 0:
        file.write_text(json.dumps(results))
    mesh.shutdown()


if __name__ == "__main__":
    parser = described(__doc__)
    parser.add_argument("what", choices=("peak", "seconds"))
    parser.add_argument("plan", metavar="PLAN", type=lambda text: Plan(**json.loads(text)))
    parser.add_argument("file", metavar="FILE", type=Path)
    args = parser.parse_args()
    main(args.what, args.plan, args.file)
