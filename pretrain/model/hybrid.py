"""HybridLM: embedding, blocks (prelude | core | coda) and head; the loop is in `sleep.py`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from parallel import mesh, watchdog
from parallel.block import Block
from parallel.combinations import MAX_LOGITS
from parallel.graphs import UnitGraphs
from parallel.layers import (
    ColumnLinear,
    Embedding,
    copy_to_tp,
    cross_entropy,
    scatter_tokens,
    share,
    split_dim,
)
from parallel.norms import RMSNorm
from parallel.recompute import maybe_checkpoint, run_unit
from parallel.stages import Stage
from parallel.state import State
from parallel.window import Window
from pretrain.config.schema import ModelConfig, SleepConfig


class HybridLM(nn.Module):
    """A decoder of attention and delta-rule blocks whose core is looped over each window.

    With pipeline parallelism this is one stage's part: the stage's blocks, under their numbers in
    the model, the embedding on the first stage, norm and head on the last. If tied, both ends hold
    the embedding, and the engine keeps the copies equal.

    Build it after `parallel.mesh.initialize`. `initialize(seed)` draws the weights.
    """

    def __init__(
        self, config: ModelConfig, sleep_config: SleepConfig, stage: Stage | None = None
    ) -> None:
        super().__init__()
        self.config, self.sleep = config, sleep_config
        self.graphs: UnitGraphs | None = None  # set by `graph_units`: units are then replayed
        self.stage = stage = stage or Stage.only(len(config.layers))
        if stage.is_first or (stage.is_last and config.tie_embeddings):
            self.embed = Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleDict({str(b): Block(config, config.layers[b]) for b in stage.blocks})
        if stage.is_last:
            self.norm = RMSNorm(config.d_model, config.norm_eps, partial_grad=False)
            self.head = (
                None if config.tie_embeddings else ColumnLinear(config.d_model, config.vocab_size)
            )

    @property
    def core(self) -> slice:
        """The core, which every pass runs, as a slice of this stage's blocks."""
        return self.stage.local(self.sleep.prelude, len(self.config.layers) - self.sleep.coda)

    def blocks_of(self, part: slice) -> list[Block]:
        """A slice of this stage's blocks, in order."""
        return [block for block in list(self.blocks.values())[part] if isinstance(block, Block)]

    def run(
        self,
        numbers: range,
        h: Tensor,
        state: State,
        window: Window,
        *,
        policy: str = "none",
        write_only: int | None = None,
    ) -> tuple[Tensor, State]:
        """Runs those of the model's blocks `numbers` that are on this stage, as one unit.

        Args:
            h: [B, t, D], or the sequence-parallel stream (`parallel.layers`).
            policy: what is kept for backward, see `parallel.recompute`.
            write_only: the number of the block that only updates its state, if there is one.
        Returns:
            h of the same shape, and the state with these blocks' memory updated.
        """
        part = self.stage.local(numbers.start, numbers.stop)
        if not (blocks := self.blocks_of(part)):
            return h, state
        ends_in_write = write_only == numbers[-1] and numbers[-1] in self.stage.blocks
        run = partial(run_unit, blocks, write_only=ends_in_write)
        memory = state.blocks[part]
        if self.graphs and policy == "unit" and torch.is_grad_enabled():
            graphed = partial(run, policy="none")
            h, left = self.graphs.run((numbers, ends_in_write), graphed, h, memory, window)
        else:
            h, left = run(h, memory, window, policy=policy)
        return h, state.with_blocks(part, left)

    def graph_units(self) -> HybridLM:
        """From now on, runs units that keep only their inputs for backward as CUDA graphs."""
        self.graphs = UnitGraphs(self.blocks)
        return self

    @property
    def tied(self) -> nn.Parameter | None:
        """The embedding weight, on the first and the last stage, if it is also the head's."""
        ends = self.stage.is_first or self.stage.is_last
        return self.embed.weight if self.config.tie_embeddings and ends else None

    def is_elsewhere(self, name: str) -> bool:
        """Whether a parameter is on another stage."""
        block = name.split(".")[1] if name.startswith("blocks.") else ""
        if block.isdigit():
            return int(block) < len(self.config.layers) and int(block) not in self.stage.blocks
        ends = {"embed.weight": self.stage.is_first, "norm.weight": self.stage.is_last}
        ends |= {} if self.config.tie_embeddings else {"head.weight": self.stage.is_last}
        return not ends.get(name, True)

    def embedded(self, tokens: Tensor) -> Tensor:
        """[B, T] -> the residual stream (`parallel.layers`)."""
        return scatter_tokens(self.embed(tokens))

    def logits(self, y: Tensor) -> Tensor:
        """[n, D], the same on every tensor-parallel rank -> [n, vocabulary of this rank]."""
        y = copy_to_tp(self.norm(y))
        if self.head is None:
            return nn.functional.linear(y, self.embed.weight)
        return self.head(y)

    def losses(self, y: Tensor, targets: Tensor, *, recompute: bool = False) -> Tensor:
        """Cross-entropy of each scored position.

        Args:
            y: [n, D]. targets: [n].
            recompute: compute the logits again in backward, a part at a time, rather than keep all.
        Returns:
            [n], in at least fp32.
        """

        def of_part(y: Tensor, targets: Tensor) -> Tensor:
            return cross_entropy(self.logits(y), targets)

        parts = self.in_parts(y, targets)
        return torch.cat([maybe_checkpoint(of_part, *part, recompute=recompute) for part in parts])

    def in_parts(self, y: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """y [n, D] and targets [n] in parts of at most MAX_LOGITS logits on this rank."""
        positions = max(1, MAX_LOGITS // (self.config.vocab_size // mesh.tp_size()))
        return zip(y.split(positions), targets.split(positions), strict=True)

    def empty_state(self, rows: int, past: int = 0) -> State:
        """The memory of rows that have read nothing.

        Args:
            past: how many keys of earlier windows it holds, zeros that are not attendable.
        """
        blocks = (
            block.empty_state(rows, self.device, self.dtype, past)
            for block in self.blocks_of(slice(None))
        )
        attendable = torch.zeros(rows, past, dtype=torch.bool, device=self.device)
        position = torch.zeros(rows, dtype=torch.int64, device=self.device)
        return State(tuple(blocks), attendable, position, past)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights and the residual stream."""
        return next(self.parameters()).dtype

    @torch.no_grad()
    def initialize(self, seed: int) -> HybridLM:
        """Draws each parameter from (seed, its name) alone, so that the weights do not depend on
        the layout.
        """
        for name, parameter in self.named_parameters():
            watchdog.part("drawing", name)
            dim, shape = split_dim(parameter), list(parameter.shape)
            if dim is not None:
                shape[dim] *= mesh.tp_size()
            parameter.copy_(share(initial_value(name, shape, self.config, seed), dim))
        return self


def writes_residual(name: str) -> bool:
    """Whether a parameter is a matrix whose output is added to the residual stream."""
    return name.endswith(("mixer.out.weight", "mlp.down.weight"))


def initial_value(name: str, shape: Sequence[int], config: ModelConfig, seed: int) -> Tensor:
    """The initial value of one parameter, whole."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    last = name.rsplit(".", 1)[-1]
    if last == "A_log":
        # The heads' decay rates are spread evenly over decay_init, on a log scale. Some must be
        # slow: sleep cannot help a head that forgets a window before the window ends.
        slow, fast = config.decay_init
        return torch.linspace(math.log(slow), math.log(fast), shape[0], dtype=torch.float64).float()
    if last == "dt_bias":
        # softplus of it is 1: -log a_t starts at exp(A_log)
        return torch.full(shape, math.log(math.e - 1))
    if last.startswith("conv_"):
        bound = shape[1] ** -0.5
        return torch.rand(shape, generator=generator) * 2 * bound - bound
    if name.endswith("mixer.norm.weight"):
        return torch.ones(shape)
    if len(shape) == 1:
        return torch.zeros(shape)  # zero-centred RMSNorm, biases
    std = {"embed": config.embedding_at_start, "head": config.head_std}.get(
        name.split(".", 1)[0], config.init_std
    )
    if config.residual_std and writes_residual(name):
        std = config.residual_std
    return torch.randn(shape, generator=generator) * std
