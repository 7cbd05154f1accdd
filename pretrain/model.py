"""HybridLM: embedding, blocks (prelude | core | coda), head. The order in which they run is `pretrain/sleep.py`."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

from parallel import mesh
from parallel.block import Block
from parallel.layers import ColumnLinear, Embedding, RMSNorm, cross_entropy
from parallel.state import State
from pretrain import sleep
from pretrain.batch import Batch
from pretrain.config import ModelConfig, SleepConfig
from pretrain.probe import Probe


class HybridLM(nn.Module):
    """A decoder of attention and delta-rule blocks whose core is looped over each window.

    Build it after `parallel.mesh.initialize`. Weights are drawn by `initialize(seed)`.
    """

    def __init__(self, config: ModelConfig, sleep_config: SleepConfig) -> None:
        super().__init__()
        self.config, self.sleep = config, sleep_config
        self.embed = Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config, kind) for kind in config.layers)
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.head = None if config.tie_embeddings else ColumnLinear(config.d_model, config.vocab_size)

    def forward(
        self,
        batch: Batch,
        state: State | None = None,
        passes: int | None = None,
        recompute: str = "none",
        probe: Probe | None = None,
        head: sleep.Head | None = None,
    ) -> sleep.Output:
        """Reads a batch window by window, sleeping between them: see `pretrain.sleep.run`."""
        return sleep.run(self, batch, state, passes, recompute, probe, head)

    @property
    def prelude(self) -> slice:
        """Blocks that run once per window, before the loop."""
        return slice(0, self.sleep.prelude)

    @property
    def core(self) -> slice:
        """Blocks that every pass runs."""
        return slice(self.sleep.prelude, len(self.blocks) - self.sleep.coda)

    @property
    def coda(self) -> slice:
        """Blocks that run once per window, after the loop."""
        return slice(len(self.blocks) - self.sleep.coda, len(self.blocks))

    def run_blocks(self, part: slice) -> list[Block]:
        """The blocks of one part, in order."""
        return [block for block in self.blocks[part] if isinstance(block, Block)]

    def logits(self, y: Tensor) -> Tensor:
        """[n, D] -> [n, vocabulary of this rank]."""
        y = self.norm(y)
        if self.head is None:
            return nn.functional.linear(y, self.embed.weight)
        return self.head(y)

    def losses(self, y: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of each scored position. y: [n, D]; targets: [n]. Returns [n] in at least fp32."""
        return cross_entropy(self.logits(y), targets)

    def empty_state(self, rows: int) -> State:
        """The memory of rows that have read nothing."""
        device, dtype = self.norm.weight.device, self.norm.weight.dtype
        blocks = tuple(block.empty_state(rows, device, dtype) for block in self.run_blocks(slice(None)))
        attendable = torch.zeros(rows, 0, dtype=torch.bool, device=device)
        return State(blocks, attendable, torch.zeros(rows, dtype=torch.int64, device=device))

    @torch.no_grad()
    def initialize(self, seed: int) -> HybridLM:
        """Draws every parameter from (seed, its name) alone, so that the weights do not depend on the layout."""
        for name, parameter in self.named_parameters():
            split = getattr(parameter, "partition_dim", -1) if mesh.tp_size() > 1 else -1
            whole = list(parameter.shape)
            if split >= 0:
                whole[split] *= mesh.tp_size()
            value = _initial_value(name, whole, self.config, seed)
            if split >= 0:
                value = value.chunk(mesh.tp_size(), dim=split)[mesh.tp_rank()]
            parameter.copy_(value)
        return self


def _initial_value(name: str, shape: list[int], config: ModelConfig, seed: int) -> Tensor:
    """The initial value of one whole parameter."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    last = name.rsplit(".", 1)[-1]
    if last == "A_log":
        # Heads forget at rates spread evenly, in log scale, over decay_init: some must be slow, for what
        # forgets a window before it ends cannot be changed by sleeping over it.
        slow, fast = config.decay_init
        return torch.linspace(math.log(slow), math.log(fast), shape[0], dtype=torch.float64).float()
    if last == "dt_bias":
        return torch.full(shape, math.log(math.e - 1))  # softplus of it is 1: -log a_t starts at exp(A_log)
    if last.startswith("conv_"):
        bound = shape[1] ** -0.5
        return torch.rand(shape, generator=generator) * 2 * bound - bound
    if name.endswith("mixer.norm.weight"):
        return torch.ones(shape)
    if len(shape) == 1:
        return torch.zeros(shape)  # zero-centred RMSNorm
    std = {"embed": config.embedding_std, "head": config.head_std}.get(name.split(".", 1)[0], config.init_std)
    return torch.randn(shape, generator=generator) * std
