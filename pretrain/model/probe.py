"""What a logging step looks at inside the loop: is sleep writing, and is its gradient alive?"""

from __future__ import annotations

from collections import defaultdict

import torch
import torch.distributed as dist
from torch import Tensor

from parallel import mesh
from parallel.state import DeltaState, State


class Probe:
    """Collects norms during one forward and backward; costs one host sync, in `summary`."""

    def __init__(self) -> None:
        # pass -> |S_n - S_(n-1)|^2 of each window
        self._updates: dict[int, list[Tensor]] = defaultdict(list)
        # pass -> |dloss/dS_n|^2 of each window
        self._gradients: dict[int, list[Tensor]] = defaultdict(list)
        self._states: list[Tensor] = []  # |S|^2 at each window's end
        # mean over rows and heads of prod_t a_t, per delta block and window
        self._retention: list[Tensor] = []

    def record_decay(self, log_decay: Tensor) -> None:
        """Notes a delta block's wake pass. log_decay: [B, T, H]."""
        self._retention.append(log_decay.detach().sum(dim=1).exp().mean())

    def after_pass(self, number: int, before: State, after: State) -> None:
        """Notes what pass `number` (from 1) wrote, and hooks the gradient that reaches it."""
        for old, new in zip(before.blocks, after.blocks, strict=True):
            if isinstance(old, DeltaState) and isinstance(new, DeltaState) and new.S is not old.S:
                self._updates[number].append((new.S.detach() - old.S.detach()).square().sum())
                if new.S.requires_grad:
                    new.S.register_hook(lambda g: self._gradients[number].append(g.square().sum()))

    def end_window(self, state: State) -> None:
        """Notes the state that crosses to the next window."""
        self._states.extend(
            b.S.detach().square().sum() for b in state.blocks if isinstance(b, DeltaState)
        )

    def summary(self) -> dict[str, float | list[float]]:
        """Norms over this data-parallel rank's rows, all blocks and windows; lists go by pass, from
        pass 1.

        Called by all ranks that hold the model together; each has looked at its own heads and
        blocks.
        """
        passes = torch.tensor(max(self._updates, default=0), device=mesh.device())
        dist.all_reduce(passes, op=dist.ReduceOp.MAX, group=mesh.model_group())
        by_pass = range(1, int(passes) + 1)
        mine = [*(self._updates[n] for n in by_pass), *(self._gradients[n] for n in by_pass)]
        count = torch.tensor(float(len(self._retention)), dtype=torch.double, device=mesh.device())
        sums = [
            torch.stack([count.new_zeros(()), *values]).sum()
            for values in (*mine, self._states, self._retention)
        ]
        total = torch.stack([*sums, count])
        dist.all_reduce(total, group=mesh.model_group())
        *squares, retention, blocks = total.tolist()
        norms = [square**0.5 for square in squares]
        return {
            "update_norm_per_pass": norms[: int(passes)],
            "grad_norm_per_pass": norms[int(passes) : -1],
            "state_norm": norms[-1],
            "retention": retention / blocks if blocks else 1.0,
        }
