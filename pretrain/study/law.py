"""The scaling laws that a study fits: loss by size, text and passes; accuracy by depth.

    L(N_once, N_loop, D, r) = E + A (N_once + r^phi N_loop)^-alpha + B D^-beta

is the law of looped depth of arXiv 2604.21106, with r passes as its loops: N_once parameters run
once, N_loop in every pass, D tokens. phi = 1: a pass is worth as much as that many more
parameters; phi = 0: it is worth nothing (looped depth on text: 0.46).

    p(k) = c + (1 - c) sigmoid(s (h - log2 k))
    h = h_0 + psi log2 r + a log2 N + b log2 D

is accuracy at depth k (hops, steps of an automaton): the horizon 2^h, at which it is half-way from
chance c to 1, moves with passes, parameters and tokens. psi = 1: twice the passes go twice as deep.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Array = NDArray[np.float64]
Number = Array | float
LOOPED_DEPTH = 0.46  # phi of arXiv 2604.21106, 116 runs on text


@dataclass(frozen=True)
class Points:
    """The data of a fit: one entry per run and token budget. All [n]."""

    once: Array  # parameters that run once
    looped: Array  # parameters that every pass runs
    passes: Array
    tokens: Array
    loss: Array  # nats
    rung: NDArray[np.int64]  # of the ladder, the smallest is 0
    run: NDArray[np.int64]  # the same for all budgets of a run, which are resampled together
    seed: NDArray[np.int64]  # the same for all runs that read the same data

    def __len__(self) -> int:
        return len(self.loss)

    def of(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> Self:
        """The rows of an index or a mask."""
        return type(self)(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    @property
    def parameters(self) -> Array:
        return self.once + self.looped


@dataclass(frozen=True)
class LossLaw:
    """E + A (N_once + r^phi N_loop)^-alpha + B D^-beta, in nats."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    phi: float  # nan if all runs made the same number of passes

    def loss(
        self, once: Number, looped: Number, passes: Number, tokens: Number
    ) -> NDArray[np.float64]:
        """Nats, of any shape that the arguments broadcast to."""
        worth = passes ** (0.0 if np.isnan(self.phi) else self.phi)
        size = once + worth * looped
        return np.asarray(self.E + self.A * size**-self.alpha + self.B * tokens**-self.beta)

    def at(self, points: Points) -> Array:
        """[n] nats."""
        return self.loss(points.once, points.looped, points.passes, points.tokens)


@dataclass(frozen=True)
class DepthPoints(Points):
    """`Points` with accuracy at a depth; the loss is not used."""

    depth: Array  # k
    accuracy: Array  # 0 to 1


@dataclass(frozen=True)
class DepthLaw:
    """Accuracy by depth; N and D are relative to N0 and D0."""

    h: float  # log2 of the horizon with one pass, at N0 and D0
    psi: float  # of passes
    a: float  # of parameters
    b: float  # of tokens
    s: float  # slope: how sharply accuracy falls around the horizon
    chance: float
    N0: float
    D0: float

    def horizon(self, parameters: Array, passes: Array, tokens: Array) -> Array:
        """log2 of the depth at which accuracy is half-way from chance to 1."""
        grown = self.a * np.log2(parameters / self.N0) + self.b * np.log2(tokens / self.D0)
        return self.h + self.psi * np.log2(passes) + grown

    def accuracy(self, horizon: Array, depth: Array) -> Array:
        """Share of right answers at each depth, by the log2 of the horizon."""
        return self.chance + (1 - self.chance) * expit(self.s * (horizon - np.log2(depth)))

    def at(self, points: DepthPoints) -> Array:
        """[n] accuracy."""
        h = self.horizon(points.parameters, points.passes, points.tokens)
        return self.accuracy(h, points.depth)
