"""Norms that logging steps record inside the loop: does sleep write, is its gradient alive?"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel import mesh
from parallel.state import DeltaState, State
from pretrain.model.hybrid import HybridLM


class Probe:
    """Collects norms during one forward and backward; one host synchronisation, in `summary`."""

    def __init__(self) -> None:
        # pass -> |S_n - S_(n-1)|^2 of each window
        self._updates: dict[int, list[Tensor]] = defaultdict(list)
        # pass -> |dloss/dS_n|^2 of each window
        self._gradients: dict[int, list[Tensor]] = defaultdict(list)
        self._states: list[Tensor] = []  # |S|^2 at each window's end
        # [H] mean over rows of prod_t a_t, for each delta block of each window
        self._retention: list[Tensor] = []

    def record_decay(self, log_decay: Tensor) -> None:
        """Records the decays of a delta block's wake pass. log_decay: [B, T, H]."""
        self._retention.append(log_decay.detach().sum(dim=1).exp().mean(dim=0))

    def after_pass(self, number: int, before: State, after: State) -> None:
        """Records what pass `number` (from 1) wrote, and hooks the gradient that reaches it."""
        for old, new in zip(before.blocks, after.blocks, strict=True):
            if isinstance(old, DeltaState) and isinstance(new, DeltaState) and new.S is not old.S:
                self._updates[number].append((new.S.detach() - old.S.detach()).square().sum())
                if new.S.requires_grad:
                    new.S.register_hook(partial(self._note_gradient, number))

    def _note_gradient(self, number: int, gradient: Tensor | None) -> None:
        """Records a gradient; it is None if nothing has read this S."""
        if gradient is not None:
            self._gradients[number].append(gradient.square().sum())

    def end_window(self, state: State) -> None:
        """Records the state that goes to the next window."""
        self._states.extend(
            b.S.detach().square().sum() for b in state.blocks if isinstance(b, DeltaState)
        )

    def summary(self, model: HybridLM) -> dict[str, Any]:
        """Norms over this data-parallel rank's rows and all windows; lists are by pass, from
        pass 1, over the core's delta blocks, "state_norm" is over all delta blocks. "retention" is
        the mean over those before the coda; "retention_per_head" has a list of heads for each.

        Called by all ranks that read the same rows; each has recorded its own heads and blocks.
        """
        passes = torch.tensor(max(self._updates, default=0), device=mesh.device())
        _reduce(passes, dist.ReduceOp.MAX)
        by_pass = range(1, int(passes) + 1)
        mine = [*(self._updates[n] for n in by_pass), *(self._gradients[n] for n in by_pass)]
        count = torch.tensor(float(len(self._retention)), dtype=torch.double, device=mesh.device())
        sums = [
            torch.stack([count.new_zeros(()), *values]).sum()
            for values in (*mine, self._states, [each.mean() for each in self._retention])
        ]
        heads = self._by_head(model)
        total = torch.cat([torch.stack([*sums, count]), heads.flatten()])
        _reduce(total, dist.ReduceOp.SUM)
        *squares, retention, blocks = total[: len(sums) + 1].tolist()
        norms = [square**0.5 for square in squares]
        # losses are scaled by cp to undo the engine's average over cp ranks; undo that here
        gradients = [norm / mesh.cp_size() for norm in norms[int(passes) : -1]]
        return {
            "update_norm_per_pass": norms[: int(passes)],
            "grad_norm_per_pass": gradients,
            "state_norm": norms[-1],
            "retention": retention / blocks if blocks else 1.0,
            "retention_per_head": total[len(sums) + 1 :].view(heads.shape).tolist(),
        }

    def _by_head(self, model: HybridLM) -> Tensor:
        """[delta blocks, heads] of the whole model; zero for those of other ranks."""
        stage, before_coda = model.stage.blocks, len(model.config.layers) - model.sleep.coda
        is_delta = [kind == "delta" for kind in model.config.layers[:before_coda]]
        first, mine = sum(is_delta[: stage.start]), sum(is_delta[stage.start : stage.stop])
        shape = sum(is_delta), model.config.delta_value_heads
        table = torch.zeros(shape, dtype=torch.double, device=mesh.device())
        if self._retention:
            H = len(self._retention[0])
            by_window = torch.stack(self._retention).view(-1, mine, H)
            table[first : first + mine, mesh.head_rank() * H :][:, :H] = by_window.mean(dim=0)
        return table


def _reduce(values: Tensor, op: dist.ReduceOp.RedOpType) -> None:
    """All-reduces in place, over all ranks that read the same rows."""
    for group in (mesh.model_group(), mesh.cp_group()):
        dist.all_reduce(values, op=op, group=group)
