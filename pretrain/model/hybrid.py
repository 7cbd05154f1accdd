"""HybridLM: embedding, blocks (prelude | core | coda), head. Their order is in
`pretrain/model/sleep.py`.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

from parallel import mesh
from parallel.block import Block
from parallel.layers import (
    ColumnLinear,
    Embedding,
    RMSNorm,
    copy_to_tp,
    cross_entropy,
    scatter_tokens,
    share,
    split_dim,
)
from parallel.stages import Stage
from parallel.state import State
from pretrain.config.schema import ModelConfig, SleepConfig
from pretrain.data.batch import Batch
from pretrain.model import sleep
from pretrain.model.probe import Probe


class HybridLM(nn.Module):
    """A decoder of attention and delta-rule blocks whose core is looped over each window.

    With pipeline stages it is one stage's part of it: the stage's blocks under their numbers in the
    model, the embedding on the first stage, norm and head on the last. If tied, both ends hold the
    embedding, and the engine keeps them equal.

    Build it after `parallel.mesh.initialize`. Weights are drawn by `initialize(seed)`.
    """

    def __init__(
        self, config: ModelConfig, sleep_config: SleepConfig, stage: Stage | None = None
    ) -> None:
        super().__init__()
        self.config, self.sleep = config, sleep_config
        self.stage = stage = stage or Stage.only(len(config.layers))
        if stage.is_first or (stage.is_last and config.tie_embeddings):
            self.embed = Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleDict({str(b): Block(config, config.layers[b]) for b in stage.blocks})
        if stage.is_last:
            self.norm = RMSNorm(config.d_model, config.norm_eps, partial_grad=False)
            self.head = (
                None if config.tie_embeddings else ColumnLinear(config.d_model, config.vocab_size)
            )

    def forward(
        self,
        batch: Batch,
        state: State | None = None,
        passes: int | None = None,
        recompute: str = "none",
        probe: Probe | None = None,
        head: sleep.Head | None = None,
        agree: sleep.Agree = sleep.alone,
    ) -> sleep.Output:
        """Reads a batch window by window, sleeping between them: see `pretrain.model.sleep.run`."""
        return sleep.run(self, batch, state, passes, recompute, probe, head, agree)

    @property
    def prelude(self) -> slice:
        """Of this stage's blocks, those that run once per window, before the loop."""
        return self.stage.local(0, self.sleep.prelude)

    @property
    def core(self) -> slice:
        """Of this stage's blocks, those that every pass runs."""
        return self.stage.local(self.sleep.prelude, len(self.config.layers) - self.sleep.coda)

    @property
    def coda(self) -> slice:
        """Of this stage's blocks, those that run once per window, after the loop."""
        return self.stage.local(len(self.config.layers) - self.sleep.coda, len(self.config.layers))

    def run_blocks(self, part: slice) -> list[Block]:
        """The blocks of one part, in order."""
        return [block for block in list(self.blocks.values())[part] if isinstance(block, Block)]

    @property
    def tied(self) -> nn.Parameter | None:
        """The embedding where it is the head's weight too: on the first and the last stage."""
        ends = self.stage.is_first or self.stage.is_last
        return self.embed.weight if self.config.tie_embeddings and ends else None

    def is_elsewhere(self, name: str) -> bool:
        """Whether a parameter is another stage's."""
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

    def losses(self, y: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of each scored position. y: [n, D]; targets: [n]. Returns [n] in at least
        fp32.
        """
        return cross_entropy(self.logits(y), targets)

    def empty_state(self, rows: int) -> State:
        """The memory of rows that have read nothing."""
        blocks = tuple(
            block.empty_state(rows, self.device, self.dtype)
            for block in self.run_blocks(slice(None))
        )
        attendable = torch.zeros(rows, 0, dtype=torch.bool, device=self.device)
        return State(blocks, attendable, torch.zeros(rows, dtype=torch.int64, device=self.device))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights and the residual stream."""
        return next(self.parameters()).dtype

    @torch.no_grad()
    def initialize(self, seed: int) -> HybridLM:
        """Draws every parameter from (seed, its name) alone, so that the weights do not depend on
        the layout.
        """
        for name, parameter in self.named_parameters():
            dim, shape = split_dim(parameter), list(parameter.shape)
            if dim is not None:
                shape[dim] *= mesh.tp_size()
            parameter.copy_(share(_initial_value(name, shape, self.config, seed), dim))
        return self


def _initial_value(name: str, shape: list[int], config: ModelConfig, seed: int) -> Tensor:
    """The initial value of one whole parameter."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    last = name.rsplit(".", 1)[-1]
    if last == "A_log":
        # Heads forget at rates spread evenly, in log scale, over decay_init: some must be slow, for
        # what forgets a window before it ends cannot be changed by sleeping over it.
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
        return torch.zeros(shape)  # zero-centred RMSNorm
    std = {"embed": config.embedding_std, "head": config.head_std}.get(
        name.split(".", 1)[0], config.init_std
    )
    return torch.randn(shape, generator=generator) * std
