"""Solves a problem on a grid of real ranks, and compares the solution with one process's."""

from __future__ import annotations

from itertools import accumulate as running_sum
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel import mesh
from parallel.engine import Engine
from parallel.stages import Stage, balanced
from pretrain.config.schema import ParallelConfig
from pretrain.data.batch import IGNORE
from pretrain.model.hybrid import HybridLM
from pretrain.run.optimizer import MuonAdamW
from pretrain.run.state import CarriedState
from pretrain.run.step import accumulate
from tests import gathered
from tests.layouts.cases import Case, Layout
from tests.layouts.planted import planted
from tests.layouts.problem import STEPS, Problem, Solution


class Watched(MuonAdamW):
    """Keeps the gradient that an update is computed from."""

    def _muon(self, gradient: Tensor, accepted: Tensor) -> None:
        self.seen = gradient.clone()
        super()._muon(gradient, accepted)


def build(problem: Problem, layout: Layout) -> tuple[Engine, HybridLM, Watched]:
    """A problem's engine, model and optimiser on this grid."""
    even = balanced([1.0] * len(problem.layers), layout.pp)
    given = tuple(running_sum(layout.stages, initial=0))
    net = problem.build(stage=Stage(mesh.pp_rank(), given if layout.stages else even))
    optimizer = Watched(net.named_parameters(), problem.optimization, layers=problem.layers)
    engine = Engine(
        net,
        optimizer,
        zero=layout.zero,
        precision=problem.precision,
        microbatches=layout.microbatches,
        offload=layout.offload,
        tied=net.tied,
    )
    return engine, net, optimizer


def solve(problem: Problem, layout: Layout) -> Solution:
    """The counterpart of `problem.solve` on this grid; the whole solution on rank 0."""
    engine, net, optimizer = build(problem, layout)
    parallel = ParallelConfig(
        tp=layout.tp, cp=layout.cp, pp=layout.pp, zero=layout.zero, recompute=layout.recompute
    )
    found, lanes = Solution(), CarriedState.empty(layout.microbatches)
    for step in range(STEPS):
        whole = problem.batch(step)
        mine = whole.split(layout.dp)[mesh.dp_rank()]
        parts = mine.split(layout.microbatches)
        scored = int((whole.targets != IGNORE).sum())
        outputs = accumulate(engine, net, parts, lanes.states, scored, parallel)
        lanes = CarriedState([out.state for out in outputs], mine.carries)
        engine.step()
        # on the last stage; zero on the others
        loss = torch.stack([out.loss for out in outputs]).sum().float()
        for group in (mesh.dp_cp_group(), mesh.pp_group()):
            dist.all_reduce(loss, group=group)
        found.losses.append(float(loss) / scored)
        found.norms.append(float(optimizer.grad_norm))
        found.gradients.append(
            gathered.whole(engine.partition.pieces(optimizer.seen, optimizer.names))
        )
    found.weights = gathered.whole(engine.weights())
    found.state = gathered.whole(lanes.pieces(net), partial=True)
    engine.close()
    return found


def _what_counts(state: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """The memory of some rows, zero where a key belongs to PAD or to another document."""
    attendable = state["attendable"][rows].bool()[:, None, :, None]  # [B, 1, past, 1]
    kept = {name: t[rows] for name, t in state.items() if name != "carries"}
    return {n: t * attendable if n.endswith((".k", ".v")) else t for n, t in kept.items()}


def errors(got: Solution, expected: Solution) -> dict[str, float]:
    """The largest relative errors |a - b| / |b|, of each tensor by its Euclidean norm.

    A tensor with less than a hundredth of the total norm is measured relative to that hundredth:
    in fp32 the sums it is computed from are no more exact.
    """

    def of(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
        assert mine.keys() == theirs.keys(), mine.keys() ^ theirs.keys()
        norms = {n: float(t.double().norm()) for n, t in theirs.items()}
        floor = 1e-2 * sum(norm**2 for norm in norms.values()) ** 0.5
        return max(
            float((mine[n].double() - t.double()).norm()) / max(norms[n], floor)
            for n, t in theirs.items()
        )

    def of_numbers(mine: list[float], theirs: list[float]) -> float:
        return max(abs(a - b) / abs(b) for a, b in zip(mine, theirs, strict=True))

    on = got.state["carries"]  # a row's memory counts only if its document goes on
    kept, right = (_what_counts(state, on) for state in (got.state, expected.state))
    return {
        "loss": of_numbers(got.losses, expected.losses),
        "norm": of_numbers(got.norms, expected.norms),
        "gradient": max(of(a, b) for a, b in zip(got.gradients, expected.gradients, strict=True)),
        "weight": of(got.weights, expected.weights),
        "state": of(kept, right),
    }


def solve_all(cases: list[Case], references: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Run by every rank: the errors of the cases' solutions on rank 0, nothing on the others.

    Args:
        references: for each case the fields of one process's `Solution`.
    """
    found, standing = [], None
    for (layout, problem, plant), reference in zip(cases, references, strict=True):
        grid = (layout.tp, layout.pp, layout.sequence_parallel, layout.cp, layout.by_tokens)
        if grid != standing:
            mesh.leave_grid()
            mesh.initialize(*grid[:3], cp=layout.cp, delta_by_tokens=layout.by_tokens, timeout=120)
            standing = grid
        with planted(plant):
            got = solve(problem, layout)
        if dist.get_rank() == 0:
            found.append(errors(got, Solution(**reference)))
    return found
