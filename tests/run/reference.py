"""A plain training loop that uses none of our code but the model: one process, one matrix at a
time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from pretrain.config.schema import ModelConfig, OptimizerConfig, SleepConfig
from pretrain.data.batch import IGNORE, Batch
from pretrain.model.sleep import SleepLM

MODEL = ModelConfig(
    d_model=24, attention_heads=2, attention_kv_heads=1, attention_head_dim=12, delta_key_heads=1,
    delta_value_heads=3, delta_key_dim=8, delta_value_dim=10, delta_chunk=8, mlp_width=40,
    vocab_size=37, rotary_fraction=0.5, layers=["attention", "delta"], decay_init=(1e-3, 0.02),
    embedding_std=0.5,
)  # fmt: skip
SLEEP = SleepConfig(passes=2, window=8)
OPTIMIZER = OptimizerConfig(muon_lr=5e-3, adamw_lr=2e-3, weight_decay=0.1, clip=0.2, warmup=0)


def model(seed: int = 0) -> SleepLM:
    """The small hybrid of these tests. Its sizes are such that no parameter splits evenly over two
    ranks.
    """
    return SleepLM(MODEL, SLEEP).initialize(seed)


def batch(step: int, rows: int = 4, tokens: int = 16) -> Batch:
    """Random rows in which different rows have different numbers of scored tokens."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(0, MODEL.vocab_size, (rows, tokens + 1), generator=generator)
    targets = ids[:, 1:].clone()
    for row in range(rows):
        targets[row, : 2 * row] = IGNORE
    starts = torch.zeros(rows, -(-tokens // SLEEP.window), dtype=torch.bool)
    starts[:, 0] = True
    valid, carries = torch.ones(rows, tokens, dtype=torch.bool), torch.zeros(rows, dtype=torch.bool)
    return Batch(ids[:, :-1], targets, valid, starts, carries)


def orthogonalized(G: torch.Tensor) -> torch.Tensor:
    """Five steps of X <- 3.4445 X - 4.7750 (X X') X + 2.0315 (X X')^2 X from X = G / |G|."""
    X = G / (G.norm() + 1e-7)
    if G.shape[0] > G.shape[1]:
        return orthogonalized(G.T).T
    for _ in range(5):
        XXt = X @ X.T
        X = 3.4445 * X - 4.7750 * XXt @ X + 2.0315 * XXt @ XXt @ X
    return X


def is_matrix_of_body(name: str, p: torch.Tensor) -> bool:
    """Whether Muon updates it."""
    return name.startswith("blocks.") and p.dim() == 2 and "conv" not in name


class Trained(NamedTuple):
    """The results of `steps` steps on batch(0), batch(1), ..."""

    weights: dict[str, torch.Tensor]
    moments: dict[str, torch.Tensor]
    losses: list[float]  # per scored token
    norms: list[float]  # of the gradient, before clipping


def train(steps: int, precision: torch.dtype = torch.float32) -> Trained:
    """Trains the model by hand."""
    net, c = model(), OPTIMIZER
    masters = {n: p.detach().clone().requires_grad_() for n, p in net.named_parameters()}
    net.to(precision)
    buffers = {n: torch.zeros_like(p) for n, p in masters.items() if is_matrix_of_body(n, p)}
    others = {n: p for n, p in masters.items() if n not in buffers}
    tables = {n: others[n] for n in ("embed.weight", "head.weight")}
    rest = [p for n, p in others.items() if n not in tables]
    groups = [
        {"params": list(tables.values()), "weight_decay": 0.1},
        {"params": rest, "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=c.adamw_lr, betas=c.betas)
    losses, norms = [], []
    for step in range(steps):
        b = batch(step)
        loss = net(b).loss / int((b.targets != IGNORE).sum())
        net.zero_grad()
        loss.backward()
        for name, p in net.named_parameters():
            masters[name].grad = p.grad.to(torch.float32)
        norms.append(float(torch.nn.utils.clip_grad_norm_(list(masters.values()), c.clip)))
        losses.append(float(loss.detach()))
        adam.step()
        with torch.no_grad():
            for name, M in buffers.items():
                W, G = masters[name], masters[name].grad
                M.mul_(0.95).add_(G)
                O = orthogonalized(G + 0.95 * M)  # noqa: E741
                W -= c.muon_lr * (0.1 * W + max(1, W.shape[0] / W.shape[1]) ** 0.5 * O)
            for name, p in net.named_parameters():
                p.copy_(masters[name])
    moments = {f"momentum.{n}": M for n, M in buffers.items()}
    for name, p in others.items():
        moments |= {f"{kind}.{name}": adam.state[p][kind] for kind in ("exp_avg", "exp_avg_sq")}
    return Trained({n: p.detach() for n, p in masters.items()}, moments, losses, norms)
