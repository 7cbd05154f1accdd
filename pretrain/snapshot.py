"""What a checkpoint holds of a run in progress: taken from the ranks, and given back to them.

Everything is whole and by name, so that any layout of ranks can go on from it. Rows of lane state are in the order
of the global batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel import mesh
from parallel.engine import Engine
from parallel.layers import share
from parallel.state import AttentionState, State, split_dim
from parallel.whole import assemble
from pretrain.batch import Batch
from pretrain.checkpoint import Checkpoint, save
from pretrain.config import Config
from pretrain.data.source import Source
from pretrain.model import HybridLM
from pretrain.optimizer import MuonAdamW


@dataclass
class Lanes:
    """The fast weights of documents that go on in the next batch, for this rank's rows."""

    states: list[State | None]  # by microbatch; None: no document of its rows goes on
    carries: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))  # [rows] which rows' do

    @staticmethod
    def empty(microbatches: int) -> Lanes:
        """At the beginning of a run."""
        return Lanes([None] * microbatches)

    def remember(self, batch: Batch, states: list[State | None]) -> None:
        """After a step."""
        self.states, self.carries = states, batch.carries

    def gather(self, model: HybridLM) -> dict[str, Tensor]:
        """Every rank's rows by name, whole, on rank 0; nothing if no document goes on anywhere."""
        past = torch.tensor(max((s.past for s in self.states if s is not None), default=-1))
        dist.all_reduce(past, op=dist.ReduceOp.MAX, group=mesh.dp_group())
        if past < 0:
            return {}
        rows = len(self.carries) // len(self.states)
        parts = [s if s is not None else _blank(model, rows, int(past)) for s in self.states]
        named = [part.named_tensors(model.stage.blocks.start) for part in parts]
        mine = {name: torch.cat([n[name] for n in named]) for name in named[0]}
        mine["carries"] = self.carries.to(mesh.device())
        rows_of_all = {f"lanes.{name}": _gather_rows(value) for name, value in sorted(mine.items())}
        if mesh.dp_rank() > 0:
            return {}
        return assemble(rows_of_all, {name: split_dim(name) for name in rows_of_all})

    @staticmethod
    def restore(checkpoint: Checkpoint, model: HybridLM, batch: int, microbatches: int) -> Lanes:
        """This rank's rows, blocks and heads of a checkpoint's lanes."""
        file, blocks = "state.safetensors", {str(b) for b in model.stage.blocks}
        names = [n.removeprefix("lanes.") for n in checkpoint.names(file) if n.startswith("lanes.")]
        names = [n for n in names if not n.startswith("blocks.") or n.split(".")[1] in blocks]
        if not names:
            return Lanes.empty(microbatches)
        rows = batch // mesh.dp_size()
        begin, each = mesh.dp_rank() * rows, rows // microbatches
        mine = {
            n: share(checkpoint.tensor(file, f"lanes.{n}")[begin : begin + rows], split_dim(n)).to(mesh.device())
            for n in names
        }
        carries = mine.pop("carries").cpu()
        states: list[State | None] = []
        for m in range(microbatches):
            part = slice(m * each, (m + 1) * each)
            goes_on = bool(carries[part].any())
            named = {n: v[part] for n, v in mine.items()}
            states.append(State.from_named(named, model.stage.blocks) if goes_on else None)
        return Lanes(states, carries)


def _blank(model: HybridLM, rows: int, past: int) -> State:
    """An empty state with room for `past` keys, none of them attendable."""
    empty = model.empty_state(rows)
    blocks = tuple(
        AttentionState(*(t.new_zeros(rows, t.shape[1], past, t.shape[3]) for t in b))
        if isinstance(b, AttentionState)
        else b
        for b in empty.blocks
    )
    return State(blocks, empty.attendable.new_zeros(rows, past), empty.position, past)


def _gather_rows(value: Tensor) -> Tensor:
    """Every rank's rows in order, on the CPU of data-parallel rank 0; elsewhere something to ignore."""
    group = mesh.dp_group()
    raw = value.contiguous()
    raw = raw.to(torch.uint8) if raw.dtype == torch.bool else raw  # no backend sends bool
    parts = [torch.empty_like(raw) for _ in range(mesh.dp_size())] if mesh.dp_rank() == 0 else None
    dist.gather(raw, parts, dst=dist.get_global_rank(group, 0), group=group)
    return torch.cat(parts).to(value.dtype).cpu() if parts is not None else value


def take(
    run: Path, step: int, engine: Engine, optimizer: MuonAdamW, model: HybridLM, source: Source, lanes: Lanes,
    counters: dict[str, Any], config: Config,
) -> None:  # fmt: skip
    """Saves a checkpoint; called by all ranks, returns when it is on disk."""
    state_tensors = lanes.gather(model) | {"rng.cpu": torch.get_rng_state(), "guard.sums": optimizer.judge.sums.cpu()}
    if torch.cuda.is_available():
        state_tensors["rng.cuda"] = torch.cuda.get_rng_state()
    tensors = {
        "model.safetensors": engine.weights(),
        "optimizer.safetensors": optimizer.gather(),
        "state.safetensors": state_tensors,
    }
    state = {"optimizer": optimizer.counters(), "data": source.state_dict(), **counters}
    if dist.get_rank() == 0:
        save(run, step, tensors, state, config, config.train.keep)
    dist.barrier()


def give_back(
    checkpoint: Checkpoint, model: HybridLM, optimizer: MuonAdamW, source: Source, config: Config
) -> Lanes:
    """Everything but the weights, which a model has to have before the engine is built around it."""
    optimizer.scatter(partial(checkpoint.tensor, "optimizer.safetensors"), checkpoint.state["optimizer"])
    optimizer.judge.sums.copy_(checkpoint.tensor("state.safetensors", "guard.sums"))
    source.load_state_dict(checkpoint.state["data"])
    torch.set_rng_state(checkpoint.tensor("state.safetensors", "rng.cpu"))
    if torch.cuda.is_available() and "rng.cuda" in checkpoint.names("state.safetensors"):
        torch.cuda.set_rng_state(checkpoint.tensor("state.safetensors", "rng.cuda"))
    return Lanes.restore(checkpoint, model, config.train.batch, config.train.microbatches)
