"""A small training problem that exercises every feature, and its solution by a plain loop.

Rows differ in what they score, where their documents begin, how much of them is padding and whether
they continue in the next step. The loop uses none of our code but the model: one process, no
microbatches, nothing recomputed, one matrix at a time.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pretrain.config.schema import ModelConfig, OptimizerConfig, SleepConfig
from pretrain.data.batch import IGNORE, Batch
from pretrain.model.sleep import SleepLM
from tests.run.reference import is_matrix_of_body, orthogonalized

L, ROWS, STEPS = 6, 8, 3
CARRIES = torch.arange(ROWS) % 2 == 1  # rows whose documents continue in the next step


@dataclass(frozen=True)
class Problem:
    """What is computed, whatever the layout."""

    passes: int = 3
    when: str = "always"
    eviction: str = "hard"
    prelude: int = 0
    coda: int = 0
    truncate_passes: int = 0
    truncate_windows: int = 0
    tied: bool = False
    biased: bool = False  # whether queries, keys and values have biases
    padded: bool = True  # left padding that is masked, in some rows
    optimizer: str = "muon"
    update: str = "all"
    precision: str = "fp32"
    layers: tuple[str, ...] = ("attention", "delta", "attention", "delta")
    windows: int = 4
    key_heads: int = 2  # of attention and of the delta rule; there are twice as many other heads
    documents: int | None = None  # the seed of random documents; None: those of `_rows`

    @property
    def model(self) -> ModelConfig:
        """Its scales keep fp32 within 3e-6 of fp64, so that a tolerance of 1e-5 between layouts is
        a strict test.
        """
        return ModelConfig(
            d_model=16, attention_heads=2 * self.key_heads, attention_kv_heads=self.key_heads,
            delta_key_heads=self.key_heads, delta_value_heads=2 * self.key_heads,
            attention_head_dim=8, delta_key_dim=6, delta_value_dim=5,
            delta_chunk=4, mlp_width=28, vocab_size=22, rotary_fraction=0.5,
            layers=list(self.layers), decay_init=(1e-3, 0.05), tie_embeddings=self.tied,
            attention_qkv_bias=self.biased,
            embedding_std=1.0, init_std=0.12, head_std=0.2,
        )  # fmt: skip

    @property
    def sleep(self) -> SleepConfig:
        return SleepConfig(
            passes=self.passes, window=L, when=self.when, eviction=self.eviction,
            prelude=self.prelude, coda=self.coda,
            truncate_passes=self.truncate_passes, truncate_windows=self.truncate_windows,
        )  # fmt: skip

    @property
    def optimization(self) -> OptimizerConfig:
        return OptimizerConfig(
            name=self.optimizer, muon_lr=5e-3, adamw_lr=1e-4, weight_decay=0.1, clip=0.15, warmup=0,
            update=self.update,
        )  # fmt: skip

    def learns(self, name: str) -> bool:
        """Whether a parameter is updated."""
        of_delta = [f"blocks.{b}." for b, kind in enumerate(self.layers) if kind == "delta"]
        return self.update == "all" or name.startswith(tuple(of_delta))

    def build(self, **stage: Any) -> SleepLM:
        """The model with its initial weights, or a stage of it."""
        return SleepLM(self.model, self.sleep, **stage).initialize(0)

    @property
    def tokens(self) -> int:
        """Tokens per sequence: the last window is shorter, unless it is the only one."""
        return self.windows * L - (2 if self.windows > 1 else 0)

    def batch(self, step: int) -> Batch:
        """The global batch of a step."""
        return self._rows(step) if self.documents is None else random_documents(self, step)

    def ids(self, step: int) -> tuple[Tensor, Tensor]:
        """Random tokens [ROWS, tokens], and the token that follows each."""
        g = torch.Generator().manual_seed(step)
        ids = torch.randint(0, self.model.vocab_size, (ROWS, self.tokens + 1), generator=g)
        return ids[:, :-1].clone(), ids[:, 1:].clone()

    def _rows(self, step: int) -> Batch:
        """Rows of every kind."""
        tokens, targets = self.ids(step)
        valid = torch.ones(ROWS, self.tokens, dtype=torch.bool)
        starts = torch.zeros(ROWS, self.windows, dtype=torch.bool)
        for row in range(ROWS):
            targets[row, : row % 4] = IGNORE
            # some rows predict a window that others sleep over, also across two ranks' rows
            if self.when == "context":
                targets[row, : (2 if row % 2 or row >= 4 else 1) * L] = IGNORE
                targets[row, 2 * L : 3 * L] = IGNORE if row == 5 else targets[row, 2 * L : 3 * L]
            if self.padded and row % 3 == 1:
                valid[row, :4] = False
                targets[row, :4] = IGNORE
            if row == 6:
                starts[row, 2] = True
            starts[row, 0] = step == 0 or row % 2 == 0
        return Batch(tokens, targets, valid, starts, CARRIES.clone())


LENGTHS = (1, 2, L - 1, L, L + 1, 2 * L, 3 * L + 2, 8 * L)  # of random documents, in tokens


def random_documents(problem: Problem, step: int) -> Batch:
    """Rows of documents that begin at windows, end in PAD, and continue from step to step.

    What is not scored is decided window by window, in some problems row by row as well; under
    "context" some windows are context in all rows, as in tasks.
    """
    tokens, targets = problem.ids(step)
    valid = torch.zeros(ROWS, problem.tokens, dtype=torch.bool)
    starts = torch.zeros(ROWS, problem.windows, dtype=torch.bool)
    carries = torch.zeros(ROWS, dtype=torch.bool)
    unscored_rows = random.Random(f"{problem.documents}").choice((0.0, 0.0, 0.5))
    for row in range(ROWS):
        draw, left = random.Random(f"{problem.documents}/{row}"), 0
        for at in range((step + 1) * problem.windows):  # from step 0 on: documents continue
            begin = at % problem.windows * L
            if begin == 0:
                quiet = draw.random() < unscored_rows
            starting, unscored = left == 0, draw.random() < 0.2
            if problem.when == "context":
                unscored |= random.Random(f"{problem.documents}, window {at}").random() < 0.5
            left = draw.choice(LENGTHS) if starting else left
            end = min(begin + L, problem.tokens, begin + left)
            left -= end - begin
            if at >= step * problem.windows:
                starts[row, at % problem.windows] = starting
                valid[row, begin:end] = True
                targets[row, end - (left == 0) : begin + L] = IGNORE  # nothing follows a last token
                if quiet or unscored:
                    targets[row, begin : begin + L] = IGNORE
        carries[row] = left > 0
    if (targets != IGNORE).sum() < ROWS:
        # A step has to score more than a token or two. Otherwise the gradient has rank one, or is
        # zero for attention to a single token, and Muon turns fp32 rounding errors into directions.
        targets = torch.where(valid, problem.ids(step)[1], IGNORE)
    return Batch(tokens, targets, valid, starts, carries)


@dataclass
class Solution:
    """What STEPS steps result in."""

    losses: list[float] = field(default_factory=list)  # per scored token
    norms: list[float] = field(default_factory=list)  # of the gradient, before clipping
    gradients: list[dict[str, Tensor]] = field(default_factory=list)  # after clipping
    weights: dict[str, Tensor] = field(default_factory=dict)
    state: dict[str, Tensor] = field(default_factory=dict)  # fast weights of the rows that continue


def solve(problem: Problem) -> Solution:
    """The plain loop."""
    net, c, low = problem.build(), problem.optimization, problem.precision == "bf16"
    masters = {n: p.detach().clone().requires_grad_() for n, p in net.named_parameters()}
    net.to(torch.bfloat16 if low else torch.float32)
    learning = {n: p for n, p in masters.items() if problem.learns(n)}
    matrices = [n for n, p in learning.items() if c.name == "muon" and is_matrix_of_body(n, p)]
    momentum = {n: torch.zeros_like(masters[n]) for n in matrices}
    decayed = [
        n for n, p in learning.items() if n not in matrices and p.dim() == 2 and ".conv_" not in n
    ]
    plain = [n for n in learning if n not in matrices and n not in decayed]
    groups = [(decayed, 0.1), (plain, 0.0)]
    adam = torch.optim.AdamW(
        [{"params": [masters[n] for n in names], "weight_decay": decay} for names, decay in groups],
        lr=c.adamw_lr, betas=c.betas,
    )  # fmt: skip
    found, state = Solution(), None
    for step in range(STEPS):
        batch = problem.batch(step)
        out = net(batch, state)
        state = out.state
        loss = out.loss / int((batch.targets != IGNORE).sum())
        net.zero_grad()
        loss.backward()
        for name, p in net.named_parameters():
            used = torch.zeros_like(p) if p.grad is None else p.grad
            masters[name].grad = used.to(torch.float32) * (name in learning)
        found.norms.append(float(torch.nn.utils.clip_grad_norm_(list(masters.values()), c.clip)))
        found.losses.append(float(loss.detach()))
        found.gradients.append({n: p.grad.clone() for n, p in masters.items()})
        adam.step()
        with torch.no_grad():
            for name, M in momentum.items():
                W, G = masters[name], masters[name].grad
                M.mul_(c.momentum).add_(G)
                update = orthogonalized(G + c.momentum * M)
                W -= c.muon_lr * (0.1 * W + max(1, W.shape[0] / W.shape[1]) ** 0.5 * update)
            for name, p in net.named_parameters():
                p.copy_(masters[name])
    found.weights = {n: p.detach() for n, p in masters.items()}
    found.state = state.named_tensors()
    return found
