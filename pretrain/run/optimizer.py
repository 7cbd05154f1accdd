"""Muon for the matrices of blocks, AdamW for the rest, on this rank's ZeRO shards.

For a matrix with gradient G (already clipped by the global norm) and momentum M:

    M = mu M + G;  U = G + mu M                                     Nesterov
    O = Newton-Schulz(U)            U = A diag(s) B^T  ->  about A B^T: s becomes 0.7..1.2
    W = W - lr (wd W + sqrt(max(1, rows / columns)) O)

(Jordan et al., "Muon", 2024; momentum 0.95 and 5 steps as in arXiv 2605.26099.) Momentum and
moments are sharded exactly as ZeRO shards the master weights; Newton-Schulz sees whole matrices,
each on one rank (for the cost see `parallel.zero_layout.WholeMatrices`).

Frozen parameters (`OptimizerConfig.update`) have no moments, and their gradients do not enter the
norm or clipping.

A step that `pretrain.run.guard.StepFilter` rejects changes nothing and is counted. The device
decides this; the host never waits for it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from parallel.slices import Piece
from parallel.zero_layout import Partition, WholeMatrices
from pretrain.config.schema import OptimizerConfig
from pretrain.model.hybrid import writes_residual
from pretrain.run.guard import StepFilter
from pretrain.run.newton_schulz import newton_schulz

ADAM_EPS = 1e-8
# fraction of the way to final_lr, as a function of the fraction of the decay's steps done
DECAY_SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda p: p,
    "cosine": lambda p: (1.0 - math.cos(math.pi * p)) / 2.0,
    "sqrt": math.sqrt,
}

MUON, DECAYED, PLAIN, FROZEN = "muon", "decayed", "plain", "frozen"
ROLES = [MUON, DECAYED, PLAIN, FROZEN]  # parameters are laid out in this order
# moment -> the roles that have it
KINDS = {"momentum": (MUON,), "exp_avg": (DECAYED, PLAIN), "exp_avg_sq": (DECAYED, PLAIN)}


def role(name: str, shape: torch.Size, method: str) -> str:
    """How a parameter is updated: Muon; AdamW with weight decay (other matrices); AdamW without
    (the rest).
    """
    if len(shape) != 2 or ".conv_" in name:
        return PLAIN
    return MUON if method == "muon" and name.startswith("blocks.") else DECAYED


def lr_share(name: str, shape: torch.Size, config: OptimizerConfig) -> float:
    """The factor on its method's learning rate for a parameter (pretrain/study/transfer.py)."""
    share = config.head_lr_share if name == "head.weight" else 1.0
    is_body = role(name, shape, "muon") == MUON
    share *= config.body_lr_share if is_body and config.name == "adamw" else 1.0
    return share * (config.residual_lr_share if writes_residual(name) else 1.0)


def is_updated(name: str, layers: Sequence[str], update: str) -> bool:
    """Whether a parameter is trained, see `OptimizerConfig.update`."""
    block = name.split(".")[1] if name.startswith("blocks.") else ""
    return update == "all" or (block != "" and layers[int(block)] == update)


def lr_factor(step: int, steps: int, config: OptimizerConfig) -> float:
    """The factor on both learning rates at a step (counted from 0): linear warm-up, constant, then
    decay to final_lr in the shape of decay_shape.
    """
    factor = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    if config.decay and step >= steps - config.decay:
        progress = min(1.0, (step + 1 - (steps - config.decay)) / config.decay)
        factor *= 1.0 - DECAY_SHAPES[config.decay_shape](progress) * (1.0 - config.final_lr)
    return factor


class MuonAdamW(torch.optim.Optimizer):
    """The optimiser given to DeepSpeed: a `parallel.engine.ShardedOptimizer`."""

    grad_norm: Tensor  # [] of the last gradient, before clipping
    # [] the step's loss, the same on every rank (`pretrain.run.guard.mean_loss`); set before each
    # step
    loss: Tensor
    skipped: Tensor  # [] steps skipped so far
    adam_steps: Tensor  # [] accepted steps that the moments are of
    accepted: Tensor  # [] bool, whether the last step was accepted
    filter: StepFilter

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        config: OptimizerConfig,
        spike: float = 0.0,
        layers: Sequence[str] = (),
    ) -> None:
        """
        Args:
            layers: the kinds of the model's blocks; config.update may name one of them.
            spike: skip steps whose loss or gradient norm exceeds its running mean by this factor;
                0: never.
        """
        parameters = dict(named_parameters)
        self.roles = {
            name: role(name, p.shape, config.name)
            if is_updated(name, layers, config.update)
            else FROZEN
            for name, p in parameters.items()
        }

        def place(item: tuple[str, nn.Parameter]) -> tuple[int, bool, list[int]]:
            """Sort key: by role, then by shape, so that matrices of equal shape are orthogonalised
            in one batch. Within a role, parameters that would break the 16-byte alignment of those
            after them (slower for kernels) come last.
            """
            name, p = item
            return ROLES.index(self.roles[name]), p.numel() % 8 > 0, list(p.shape)

        named = sorted(parameters.items(), key=place)
        self.config, self.spike = config, spike
        self.names = [name for name, _ in named]
        self.shares = {name: lr_share(name, p.shape, config) for name, p in named}
        self.lr_factor = 1.0  # factor on both learning rates, set before each step
        self.calls = 0
        self.partition: Partition | None = None
        super().__init__([p for _, p in named], {})

    def attach(self, partition: Partition) -> None:
        """Allocates the moments for this rank's shards, all zero."""
        flat, self.partition = partition.flat, partition
        self.grad_norm, self.loss, self.skipped, self.adam_steps = (
            flat.new_zeros(()) for _ in range(4)
        )
        self.filter = StepFilter(self.spike, flat.device)
        self.matrices = WholeMatrices(
            partition, [name for name in self.names if self.roles[name] == MUON]
        )
        self.spans = {kind: self._span(roles) for kind, roles in KINDS.items()}
        self.moments = {kind: torch.zeros_like(flat[span]) for kind, span in self.spans.items()}
        self.decayed = self._by_share((DECAYED,))
        self.by_adamw = self._by_share((DECAYED, PLAIN))
        self.frozen = self._span((FROZEN,))
        self.matrix_slices = [shard.of(flat) for shard in self.matrices.mine]

    def _span(self, roles: tuple[str, ...]) -> slice:
        """Where this rank's shards of some (neighbouring) roles lie in its flat vector."""
        assert self.partition is not None
        shards = [shard for shard in self.partition.shards if self.roles[shard.name] in roles]
        if not shards:
            return slice(0, 0)
        return slice(shards[0].offset, shards[-1].offset + shards[-1].length)

    def _by_share(self, roles: tuple[str, ...]) -> list[tuple[float, slice]]:
        """The span of some roles, cut where the learning rate's factor changes."""
        assert self.partition is not None
        cut: list[tuple[float, slice]] = []
        for shard in self.partition.shards:
            if self.roles[shard.name] not in roles:
                continue
            share, end = self.shares[shard.name], shard.offset + shard.length
            begin = cut.pop()[1].start if cut and cut[-1][0] == share else shard.offset
            cut.append((share, slice(begin, end)))
        return cut or [(1.0, slice(0, 0))]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Called by DeepSpeed, once per step, with the reduced gradient in place."""
        # DeepSpeed calls step() once with zero gradients during initialisation
        if self.partition is None:
            return
        gradient = self.partition.gradient()
        self.partition.complete(gradient)
        gradient[self.frozen].zero_()
        norm = self.partition.square(gradient).sqrt()
        accepted = self._decide(norm)
        # as torch.nn.utils.clip_grad_norm_
        gradient.mul_((self.config.clip / (norm + 1e-6)).clamp(max=1.0))
        self._muon(gradient, accepted)
        self._adamw(gradient, accepted)
        self.calls += 1

    def learning_rates(self) -> dict[str, float]:
        """The learning rates of the step, by method."""
        peaks = {"adamw": self.config.adamw_lr}
        if self.config.name == "muon":
            peaks = {"muon": self.config.muon_lr} | peaks
        return {method: self.lr_factor * peak for method, peak in peaks.items()}

    def skip(self) -> None:
        """Counts a step whose gradient DeepSpeed found non-finite and dropped itself."""
        self._decide(torch.full_like(self.grad_norm, float("inf")))

    def _decide(self, norm: Tensor) -> Tensor:
        self.grad_norm, self.accepted = norm, self.filter(self.loss, norm)
        self.skipped += ~self.accepted
        return self.accepted

    def _muon(self, gradient: Tensor, accepted: Tensor) -> None:
        lr, span = self.config.muon_lr * self.lr_factor, self.spans["momentum"]
        gradient, momentum = gradient[span], self.moments["momentum"]
        advanced = torch.add(gradient, momentum, alpha=self.config.momentum)
        momentum.copy_(torch.where(accepted, advanced, momentum))
        nesterov = gradient.add_(momentum, alpha=self.config.momentum)
        values = [shard.of(nesterov, span.start) for shard in self.matrices.mine]
        batches = []
        for U in self.matrices.gather(values):  # [k, rows, columns]
            update = newton_schulz(U) * max(1.0, U.shape[1] / U.shape[2]) ** 0.5
            batches.append(torch.where(accepted.to(update.device), update, 0.0))
        updates = self.matrices.scatter(batches)
        by_share: dict[float, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for shard, weights, update in zip(
            self.matrices.mine, self.matrix_slices, updates, strict=True
        ):
            by_share[lr * self.shares[shard.name]].append((weights, update))
        for rate, pairs in by_share.items():
            matrices, steps = zip(*pairs, strict=True)
            torch._foreach_mul_(matrices, 1.0 - accepted * (rate * self.config.weight_decay))
            torch._foreach_add_(matrices, steps, alpha=-rate)

    def _adamw(self, gradient: Tensor, accepted: Tensor) -> None:
        assert self.partition is not None
        lr, flat = self.config.adamw_lr * self.lr_factor, self.partition.flat
        for share, span in self.decayed:
            flat[span].mul_(1.0 - accepted * (lr * share * self.config.weight_decay))
        beta1, beta2 = self.config.betas
        first, before = self.spans["exp_avg"].start, self.adam_steps.clone()
        for share, span in self.by_adamw:
            at = slice(span.start - first, span.stop - first)
            self.adam_steps.copy_(before)  # because each call increments it
            adamw(
                [flat[span]],
                [gradient[span]],
                [self.moments["exp_avg"][at]],
                [self.moments["exp_avg_sq"][at]],
                [],
                [self.adam_steps],
                fused=True,
                found_inf=(~accepted).float(),
                amsgrad=False,
                maximize=False,
                beta1=beta1,
                beta2=beta2,
                lr=lr * share,
                weight_decay=0.0,
                eps=ADAM_EPS,
            )

    def pieces(self) -> dict[str, Piece]:
        """This rank's pieces of all moments, by KIND.NAME; views, so copy to keep them."""
        assert self.partition is not None
        mine: dict[str, Piece] = {}
        for kind, moment in self.moments.items():
            named = self.partition.pieces(moment, self._names_with(kind), self.spans[kind].start)
            mine |= {f"{kind}.{name}": piece for name, piece in named.items()}
        return mine

    def scatter(self, whole: Callable[[str], Tensor], counters: dict[str, int]) -> None:
        """The inverse of `pieces`: takes this rank's shards of the tensors that whole("KIND.NAME")
        returns; and sets the counters.
        """
        assert self.partition is not None
        for kind, moment in self.moments.items():
            readers = {name: partial(whole, f"{kind}.{name}") for name in self._names_with(kind)}
            self.partition.scatter(moment, readers, self.spans[kind].start)
        self.adam_steps.fill_(counters["adam_steps"])
        self.skipped.fill_(counters["skipped"])
        self.filter.in_a_row.fill_(counters["in_a_row"])

    def _names_with(self, kind: str) -> set[str]:
        """The parameters that have this moment."""
        return {name for name, role in self.roles.items() if role in KINDS[kind]}

    def counters(self) -> dict[str, int]:
        """Steps accepted, skipped, and skipped in a row up to now; synchronises with the device."""
        counts = {
            "adam_steps": self.adam_steps,
            "skipped": self.skipped,
            "in_a_row": self.filter.in_a_row,
        }
        return {name: int(count) for name, count in counts.items()}
