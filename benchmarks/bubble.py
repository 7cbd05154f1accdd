"""Compares the idle time of a real pipeline with the simulator's.

Two stages, each a process with a core of its own, do training steps (`benchmarks/stage.py` has the
model). Every action is timed without its waits. The simulator then runs the same schedule with
these times: its idle time is inherent in the schedule, while the measured one also includes
messages and the interpreter.

    torchrun --nproc-per-node=2 -m benchmarks.bubble    # a table, in about a minute
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.command import described
from benchmarks.memory import Plan
from benchmarks.stage import build, microbatches
from parallel import mesh
from parallel.pipeline import Pipeline
from parallel.schedule import Action, Message, step_schedule
from parallel.simulator import simulate
from pretrain.model.reader import Reader
from pretrain.run import step

CASES = [(2, 1), (2, 4), (4, 1), (4, 2), (4, 4), (8, 4)]  # microbatches, passes


class Timed(Pipeline):
    """Records how long each action computes, and how long all take together, waits included."""

    def run(self) -> None:
        self.seconds: dict[Action, float] = {}
        self._waited = 0.0
        dist.barrier()
        begin = time.perf_counter()
        super().run()
        self.makespan = time.perf_counter() - begin

    def _forward(self, action: Action) -> None:
        self._time(super()._forward, action)

    def _backward(self, action: Action) -> None:
        self._time(super()._backward, action)

    def _time(self, act: Callable[[Action], None], action: Action) -> None:
        begin, self._waited = time.perf_counter(), 0.0
        act(action)
        self.seconds[action] = time.perf_counter() - begin - self._waited

    def _receive(self, message: Message, action: Action) -> Tensor:
        begin = time.perf_counter()
        tensor = super()._receive(message, action)
        self._waited += time.perf_counter() - begin
        return tensor


def idle(M: int, N: int) -> tuple[float, float]:
    """Measured and simulated idle time of a step, from 0 to 1."""
    p = Plan(windows=2, microbatches=M)
    model, parts = build(p), microbatches(p)
    P = mesh.pp_size()
    for _ in range(2):  # the first one initialises libraries and connections
        streams = [
            step.StageStream(Reader.of(model, part, passes=N, recompute="unit")) for part in parts
        ]
        passes = tuple(stream.passes for stream in streams)
        schedule = step_schedule(passes, P, "unit")
        timed = Timed(streams, schedule, 1.0)
        timed.run()
    everyone = [timed.seconds] * P
    dist.all_gather_object(everyone, timed.seconds)
    makespan = torch.tensor(timed.makespan)
    dist.all_reduce(makespan, op=dist.ReduceOp.MAX)
    busy = sum(sum(stage.values()) for stage in everyone)
    simulated = simulate(schedule, passes, P, lambda action, stage: everyone[stage][action])
    return 1 - busy / (P * float(makespan)), simulated.bubble


def main() -> None:
    """Prints the table on rank 0."""
    described(__doc__).parse_args()
    if mesh.world_size() == 1:
        sys.exit(
            "benchmarks.bubble: one stage is never idle; start it with torchrun on several ranks"
        )
    torch.set_num_threads(1)
    mesh.initialize(pp=mesh.world_size())
    if dist.get_rank() == 0:
        print(
            "| microbatches | N | idle, measured | idle, simulated with the measured times |\n"
            "|---|---|---|---|"
        )
    for M, N in CASES:
        measured, simulated = idle(M, N)
        if dist.get_rank() == 0:
            print(f"| {M} | {N} | {measured:.1%} | {simulated:.1%} |", flush=True)
    mesh.shutdown()


if __name__ == "__main__":
    main()
