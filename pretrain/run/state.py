"""What a checkpoint holds of a run in progress: taken from the ranks, and given back to them.

Everything is by name and says which part of a whole it is, so that any layout of ranks can go on
from it. Rows of lane state are in the order of the global batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel import mesh
from parallel.engine import Engine
from parallel.layers import share
from parallel.slices import Piece, Slice
from parallel.state import AttentionState, State, split_dim
from pretrain.checkpoint import Checkpoint, Snapshot
from pretrain.config.schema import Config
from pretrain.data.source import BatchSource
from pretrain.errors import UserError, shortened
from pretrain.model.sleep import SleepLM
from pretrain.run.guard import Rollbacks, SkipStreak, go_back
from pretrain.run.optimizer import MuonAdamW


@dataclass(frozen=True)
class CarriedState:
    """The fast weights of documents that go on in the next batch, for this rank's rows."""

    states: list[State | None]  # by microbatch; None: no document of its rows goes on
    # [rows] which rows' do
    carries: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))

    @staticmethod
    def empty(microbatches: int) -> CarriedState:
        """At the beginning of a run."""
        return CarriedState([None] * microbatches)

    def pieces(self, model: SleepLM) -> dict[str, Piece]:
        """What this rank answers for of the rows' memory, by name; nothing if none of its documents
        goes on.
        """
        states = [s for s in self.states if s is not None]
        if not states:
            return {}
        rows = len(self.carries) // len(self.states)
        parts = [_blank(model, rows, states[0].past) if s is None else s for s in self.states]
        named = [part.named_tensors(model.stage.blocks.start) for part in parts]
        mine = {name: torch.cat([n[name] for n in named]) for name in named[0]} | {
            "carries": self.carries
        }
        pieces = {}
        for name, value in mine.items():
            places, dim = {0: (mesh.dp_rank(), mesh.dp_size())}, split_dim(name)
            if dim is not None:
                places[dim] = (mesh.tp_rank(), mesh.tp_size())
            # the rest is the same on all
            if name.startswith("blocks.") or mesh.tp_rank() == mesh.pp_rank() == 0:
                pieces[name] = Piece(Slice.share(tuple(value.shape), places), value)
        return pieces

    @staticmethod
    def restore(
        checkpoint: Checkpoint, model: SleepLM, batch: int, microbatches: int
    ) -> CarriedState:
        """This rank's rows, blocks and heads of a checkpoint's lanes."""
        if not any(name.startswith("lanes.") for name in checkpoint.names("state")):
            return CarriedState.empty(microbatches)
        rows = batch // mesh.dp_size()
        begin, each = mesh.dp_rank() * rows, rows // microbatches
        past = checkpoint.shape("state", "lanes.attendable")[1]
        if past >= max(model.sleep.window, 1):
            raise ValueError(f"{past} keys of the past in windows of {model.sleep.window}")
        expected = _blank(model, 1, past).named_tensors(model.stage.blocks.start)
        expected["carries"] = torch.zeros(1, dtype=torch.bool)
        mine = {}
        for name, like in expected.items():
            shape, dim = [batch, *like.shape[1:]], split_dim(name)
            if dim is not None:
                shape[dim] *= mesh.tp_size()
            # Rows of which no rank has a piece do not go on.
            value = checkpoint.tensor("state", f"lanes.{name}", partial=True, shape=tuple(shape))
            if value.dtype != like.dtype:
                raise ValueError(f"lanes.{name} is of {value.dtype} instead of {like.dtype}")
            mine[name] = share(value[begin : begin + rows], dim).to(mesh.device())
        carries = mine.pop("carries").cpu()
        states: list[State | None] = []
        for m in range(microbatches):
            part = slice(m * each, (m + 1) * each)
            goes_on = bool(carries[part].any())
            named = {n: v[part] for n, v in mine.items()}
            states.append(State.from_named(named, model.stage.blocks) if goes_on else None)
        return CarriedState(states, carries)


def _blank(model: SleepLM, rows: int, past: int) -> State:
    """An empty state with room for `past` keys, none of them attendable."""
    empty = model.empty_state(rows)
    blocks = tuple(
        AttentionState(*(t.new_zeros(rows, t.shape[1], past, t.shape[3]) for t in b))
        if isinstance(b, AttentionState)
        else b
        for b in empty.blocks
    )
    return State(blocks, empty.attendable.new_zeros(rows, past), empty.position, past)


@dataclass(frozen=True)
class TrainState:
    """Where a run stands between two steps: all that is not in the model and the optimiser."""

    step: int
    lanes: CarriedState
    data: dict[str, Any]  # `BatchSource.state_dict`
    tokens: Tensor  # [] int64, read so far, PAD left out
    rollbacks: Rollbacks
    random: dict[str, Tensor]
    evaluated: bool  # the evaluation of this step, if it has one, is done

    @staticmethod
    def here(
        step: int,
        lanes: CarriedState,
        source: BatchSource,
        tokens: Tensor,
        rollbacks: Rollbacks,
        evaluated: bool,
    ) -> TrainState:
        """After `step` steps."""
        random = {"rng.cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            random["rng.cuda"] = torch.cuda.get_rng_state()
        return TrainState(step, lanes, source.state_dict(), tokens, rollbacks, random, evaluated)

    def take(self, engine: Engine, optimizer: MuonAdamW, model: SleepLM) -> Snapshot:
        """What this rank gives to a checkpoint; before the weights change again."""
        lanes = {f"lanes.{name}": piece for name, piece in self.lanes.pieces(model).items()}
        if dist.get_rank() == 0:
            common = self.random | {"guard.sums": optimizer.judge.sums}
            lanes |= {name: Piece(Slice.share(tuple(t.shape), {}), t) for name, t in common.items()}
        tensors = {"model": engine.weights(), "optimizer": optimizer.pieces(), "state": lanes}
        copies = {
            kind: {
                name: Piece(where, t.detach().to("cpu", copy=True))
                for name, (where, t) in named.items()
            }
            for kind, named in tensors.items()
        }
        state = {"optimizer": optimizer.counters(), "data": self.data, "tokens": int(self.tokens)}
        state |= {"rollbacks": self.rollbacks._asdict(), "evaluated": self.evaluated}
        return Snapshot(self.step, copies, state)


def give_back(
    checkpoint: Checkpoint,
    model: SleepLM,
    optimizer: MuonAdamW,
    source: BatchSource,
    config: Config,
) -> TrainState:
    """Everything but the weights, which a model has to have before the engine is built around it."""
    state = checkpoint.state
    try:
        optimizer.scatter(partial(_moment, checkpoint), state["optimizer"])
        optimizer.judge.sums.copy_(checkpoint.tensor("state", "guard.sums", shape=(2,)))
        source.load_state_dict(state["data"])
        torch.set_rng_state(checkpoint.tensor("state", "rng.cpu"))
        if torch.cuda.is_available() and "rng.cuda" in checkpoint.names("state"):
            torch.cuda.set_rng_state(checkpoint.tensor("state", "rng.cuda"))
        lanes = CarriedState.restore(
            checkpoint, model, config.train.batch, config.train.microbatches
        )
        tokens = torch.tensor(state["tokens"], dtype=torch.int64, device=mesh.device())
        rollbacks = Rollbacks(**state["rollbacks"])
        return TrainState.here(
            checkpoint.step, lanes, source, tokens, rollbacks, state["evaluated"]
        )
    except UserError:
        raise
    except (
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
        OverflowError,
    ) as error:
        what = f"{type(error).__name__}: {shortened(str(error))}"
        raise UserError(
            f"{checkpoint.folder}: whole, but not as Hypnos writes it ({what})"
        ) from None


def _moment(checkpoint: Checkpoint, name: str) -> Tensor:
    """KIND.PARAMETER, of the parameter's shape: one that is not finite would spoil the weights in
    one step.
    """
    value = checkpoint.tensor(
        "optimizer", name, shape=checkpoint.shape("model", name.partition(".")[2])
    )
    if value.dtype != torch.float32 or not value.isfinite().all():
        raise ValueError(f"tensor {name} of optimizer is not finite, or not of torch.float32")
    return value


def at_the_beginning(source: BatchSource, microbatches: int) -> TrainState:
    """Before the first step."""
    tokens = torch.zeros((), dtype=torch.int64, device=mesh.device())
    return TrainState.here(
        0, CarriedState.empty(microbatches), source, tokens, Rollbacks(), evaluated=False
    )


def after_rollback(
    trouble: SkipStreak, checkpoint: Checkpoint | None, model: SleepLM, optimizer: MuonAdamW, source: BatchSource,
    config: Config,
) -> TrainState:  # fmt: skip
    """The checkpoint's step once more, on the data after the trouble. UserError: the run stops here
    instead.

    The documents that the checkpoint's fast weights belong to do not go on, and those that do begin
    with S = 0.
    """
    rollbacks, position = go_back(trouble, checkpoint, config.guard), source.state_dict()
    assert checkpoint is not None, "go_back has seen to it"
    before = give_back(checkpoint, model, optimizer, source, config)
    source.load_state_dict(position)
    return TrainState.here(
        before.step,
        CarriedState.empty(config.train.microbatches),
        source,
        before.tokens,
        rollbacks,
        before.evaluated,
    )
