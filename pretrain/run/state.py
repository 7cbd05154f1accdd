"""The state of a run in a checkpoint: how it is collected from the ranks and restored to them.

Every piece has a name and says which part of a whole tensor it is, so that any layout of ranks can
resume from it. Rows of lane state are in the order of the global batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel import mesh, watchdog
from parallel.context import own_heads
from parallel.engine import Engine
from parallel.layers import share
from parallel.slices import Piece, Slice, all_finite
from parallel.state import State, shared_dim
from pretrain.checkpoint import Checkpoint, Snapshot
from pretrain.config.schema import TrainConfig
from pretrain.data.source import BatchSource
from pretrain.errors import UserError
from pretrain.model.sleep import SleepLM
from pretrain.run.guard import Rollbacks, SkipStreak
from pretrain.run.optimizer import MuonAdamW


@dataclass(frozen=True)
class CarriedState:
    """The memory of documents that continue in the next batch, for this rank's rows."""

    states: list[State | None]  # by microbatch; None: none of its rows' documents continues
    # [rows] which rows' documents continue
    carries: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))

    @staticmethod
    def empty(microbatches: int) -> CarriedState:
        """The state at the beginning of a run."""
        return CarriedState([None] * microbatches)

    def pieces(self, model: SleepLM) -> dict[str, Piece]:
        """The pieces of the rows' memory that this rank owns, by name; none if no document of its
        rows continues.
        """
        states = [s for s in self.states if s is not None]
        if not states:
            return {}
        rows = len(self.carries) // len(self.states)
        parts = [model.empty_state(rows, states[0].past) if s is None else s for s in self.states]
        named = [part.named_tensors(model.stage.blocks.start) for part in parts]
        mine = {name: torch.cat([n[name] for n in named]) for name in named[0]} | {
            "carries": self.carries
        }
        pieces = {}
        for name, value in mine.items():
            places, dim = {0: (mesh.dp_rank(), mesh.dp_size())}, shared_dim(name)
            if dim is not None:
                places[dim] = (mesh.head_rank(), mesh.head_ranks())
            # the rest is the same on all ranks with these rows
            if name.startswith("blocks.") or mesh.answers_for_rows():
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
        past = checkpoint.shape("state", "lanes.attendable")[1]  # keys
        expected = model.empty_state(1, past).named_tensors(model.stage.blocks.start)
        expected["carries"] = torch.zeros(1, dtype=torch.bool)
        mine = {}
        for name, like in expected.items():
            shape, dim = [batch, *like.shape[1:]], shared_dim(name)
            if dim is not None:
                shape[dim] *= mesh.head_ranks()
            # Rows of which no rank saved a piece do not continue.
            value = checkpoint.tensor("state", f"lanes.{name}", partial=True, shape=tuple(shape))
            value = share(value[begin : begin + rows], dim)
            mine[name] = (value if dim is None else own_heads(value, dim)).to(mesh.device())
        carries = mine.pop("carries").cpu()
        states: list[State | None] = []
        for m in range(microbatches):
            part = slice(m * each, (m + 1) * each)
            goes_on = bool(carries[part].any())
            named = {n: v[part] for n, v in mine.items()}
            states.append(State.from_named(named, model.stage.blocks) if goes_on else None)
        return CarriedState(states, carries)


@dataclass
class TrainState:
    """The state of a run, apart from the model and the optimiser.

    It changes only between two steps, when no checkpoint can be taken; a checkpoint holds all of it
    (`snapshot`).
    """

    step: int  # steps that are done
    carried: CarriedState
    data: dict[str, Any]  # `BatchSource.state_dict`; its tensors have this rank's rows
    tokens: Tensor  # [] int64, read so far, without PAD
    rollbacks: Rollbacks
    random: dict[str, Tensor]  # see `random_state`
    evaluated: bool  # the evaluation of this step, if it has one, is done

    @staticmethod
    def initial(source: BatchSource, microbatches: int) -> TrainState:
        """The state before the first step."""
        return TrainState(
            step=0,
            carried=CarriedState.empty(microbatches),
            data=source.state_dict(),
            tokens=torch.zeros((), dtype=torch.int64, device=mesh.device()),
            rollbacks=Rollbacks(),
            random=random_state(),
            evaluated=False,
        )

    @staticmethod
    def restore(
        checkpoint: Checkpoint,
        model: SleepLM,
        optimizer: MuonAdamW,
        source: BatchSource,
        train: TrainConfig,
    ) -> TrainState:
        """Restores guard, source and random generators from a checkpoint, and returns the rest.
        (The model's weights were loaded before the engine was built around it.)
        """
        saved = checkpoint.state
        optimizer.filter.sums.copy_(checkpoint.tensor("state", "guard.sums", shape=(2,)))
        optimizer.filter.count.fill_(checkpoint.step - saved["optimizer"]["skipped"])
        source.load_state_dict(saved["data"] | _of_rows(checkpoint))
        torch.set_rng_state(checkpoint.tensor("state", "rng.cpu"))
        if torch.cuda.is_available() and "rng.cuda" in checkpoint.names("state"):
            torch.cuda.set_rng_state(checkpoint.tensor("state", "rng.cuda"))
        return TrainState(
            step=checkpoint.step,
            carried=CarriedState.restore(checkpoint, model, train.batch, train.microbatches),
            data=source.state_dict(),
            tokens=torch.tensor(saved["tokens"], dtype=torch.int64, device=mesh.device()),
            rollbacks=Rollbacks(**saved["rollbacks"]),
            random=random_state(),
            evaluated=saved["evaluated"],
        )

    def advance(
        self, carried: CarriedState, tokens: Tensor, source: BatchSource, evaluated: bool
    ) -> None:
        """Records that one more step is done.

        Args:
            tokens: [] read in it, without PAD.
            evaluated: True if the step has no evaluation.
        """
        self.step += 1
        self.carried, self.tokens = carried, self.tokens + tokens
        self.data, self.random = source.state_dict(), random_state()
        self.rollbacks = Rollbacks(self.rollbacks.total)
        self.evaluated = evaluated

    def rollback(self, streak: SkipStreak, source: BatchSource) -> None:
        """Moves a restored state on to the data after the streak.

        The documents that its fast weights belong to do not continue there; those that do start
        with S = 0.
        """
        source.load_state_dict(streak.data)
        self.data = source.state_dict()
        self.carried = CarriedState.empty(len(self.carried.states))
        self.rollbacks = Rollbacks(streak.rollbacks + 1, self.rollbacks.here + 1)

    def snapshot(self, engine: Engine, optimizer: MuonAdamW, model: SleepLM) -> Snapshot:
        """This rank's part of a checkpoint, copied; call it before the weights change again."""
        state = {f"lanes.{name}": piece for name, piece in self.carried.pieces(model).items()}
        of_rows = {f"data.{n}": v for n, v in self.data.items() if isinstance(v, Tensor)}
        if mesh.answers_for_rows():  # the same on all ranks with these rows
            place = {0: (mesh.dp_rank(), mesh.dp_size())}
            for name, rows in of_rows.items():
                state[name] = Piece(Slice.share(tuple(rows.shape), place), rows)
        if dist.get_rank() == 0:
            common = self.random | {"guard.sums": optimizer.filter.sums}
            state |= {name: Piece(Slice.share(tuple(t.shape), {}), t) for name, t in common.items()}
        tensors = {"model": engine.weights(), "optimizer": optimizer.pieces(), "state": state}
        copies = {
            kind: {
                name: Piece(where, t.detach().to("cpu", copy=True))
                for name, (where, t) in named.items()
            }
            for kind, named in tensors.items()
        }
        counts = optimizer.counters()
        counters = {
            "optimizer": counts,
            "data": {n: v for n, v in self.data.items() if f"data.{n}" not in of_rows},
            "tokens": int(self.tokens),
            "rollbacks": self.rollbacks._asdict(),
            "evaluated": self.evaluated,
        }
        return Snapshot(self.step, copies, counters, in_skip_streak=counts["in_a_row"] > 0)


def restore_moments(checkpoint: Checkpoint, optimizer: MuonAdamW) -> None:
    """Restores the optimiser's moments and counters from a checkpoint."""
    optimizer.scatter(partial(_moment, checkpoint), checkpoint.state["optimizer"])


def _of_rows(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """This rank's rows of a stream's state by row, see `BatchSource.state_dict`."""
    found = {}
    for name in checkpoint.names("state"):
        if name.startswith("data."):
            rows = checkpoint.tensor("state", name)
            found[name.removeprefix("data.")] = rows.chunk(mesh.dp_size())[mesh.dp_rank()]
    return found


def random_state() -> dict[str, Tensor]:
    """The states of torch's generators on the host and on the device."""
    states = {"rng.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["rng.cuda"] = torch.cuda.get_rng_state()
    return states


def _moment(checkpoint: Checkpoint, name: str) -> Tensor:
    """The moment KIND.PARAMETER, in the parameter's shape. UserError: it is not finite."""
    watchdog.part("reading", name)
    shape = checkpoint.shape("model", name.partition(".")[2])
    value = checkpoint.tensor("optimizer", name, shape=shape)
    if not all_finite(value):
        what = f"tensor {name} of optimizer is not finite; no run can resume from it"
        raise UserError(f"{checkpoint.folder}: {what}")
    return value
