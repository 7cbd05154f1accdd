"""Ends a sleep early: once a pass changes S by less than a given share of its norm.

    |S_n - S_(n-1)| / |S_n| < share      n = 2, 3, ...; norms over all delta blocks of the core

N is then the maximum number of passes. Each row settles on its own and keeps its state from then
on, as if it were alone; a batch goes on until its last row has settled. Used in evaluation and
sessions only: training always makes N passes.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from parallel import mesh
from parallel.passes import Pass
from parallel.state import DeltaState, State, choose_rows
from pretrain.model.plan import WindowPlan


def change_of(before: State, after: State, core: slice) -> Tensor:
    """[B], the relative change of S in a pass; the same on all tensor-parallel ranks. 0 if the core
    has no delta block, as a model may that was trained with N = 1.
    """
    squares = before.position.new_zeros(2, len(before.position), dtype=torch.float64)
    for old, new in zip(before.blocks[core], after.blocks[core], strict=True):
        if isinstance(old, DeltaState) and isinstance(new, DeltaState):
            squares += torch.stack([_square(new.S - old.S), _square(new.S)])  # of the change, of S
    if mesh.tp_size() > 1:
        dist.all_reduce(squares, group=mesh.tp_group())
    changed, whole = squares.sqrt()
    return changed / whole.clamp_min(torch.finfo(whole.dtype).tiny)


def _square(S: Tensor) -> Tensor:
    return S.double().square().sum(dim=(1, 2, 3))


class StopRule:
    """Ends the sleep of a batch row by row, and counts the passes made.

    made   for each window that some row sleeps over: [n], the passes of each of those rows, without
           rows of PAD, which have settled from the start
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.made: list[Tensor] = []
        self._sleeps = self._settled = torch.zeros(0, dtype=torch.bool)  # [B]

    def goes_on(self, w: WindowPlan, p: Pass) -> bool:
        """Whether any row still needs this pass of sleep."""
        if p.number == 2:
            self._sleeps = w.sleeps & w.has_tokens
            self._settled = ~self._sleeps
            self.made.append(torch.ones(int(self._sleeps.sum()), dtype=torch.int64))
        return not bool(self._settled.all())

    def keep(
        self, w: WindowPlan, core: slice, old: tuple[Tensor, State], new: tuple[Tensor, State]
    ) -> tuple[Tensor, State]:
        """(h, state) after a pass: the old ones for rows that had settled before it, else the
        new.
        """
        (old_h, old_state), (new_h, new_state) = old, new
        changed = change_of(old_state, new_state, core).cpu()  # synchronises: the host decides
        going = ~self._settled
        self.made[-1] += going[self._sleeps]
        self._settled = self._settled | (changed < self.share)
        going = going.to(new_h.device)
        chosen = choose_rows(going, new_state.blocks[core], old_state.blocks[core])
        h = torch.where(going.view(-1, 1, 1), new_h, old_h)
        return h, new_state.with_blocks(core, chosen)

    def means(self) -> dict[str, float]:
        """ "passes_made" and "passes_of_batches", over all windows that were slept over."""
        by_window = [made for made in self.made if len(made)] or [torch.ones(1)]
        made, longest = torch.cat(by_window), torch.stack([m.max() for m in by_window])
        return {
            "passes_made": float(made.double().mean()),
            "passes_of_batches": float(longest.double().mean()),
        }
