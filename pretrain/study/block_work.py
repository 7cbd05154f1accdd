"""Counts FLOPs, memory traffic and saved activations of one block in one unit, without running it.

FLOPs are those of `pretrain.model.flops`. In addition: the bytes moved by elementwise work, the
number of launches, and the bytes saved for backward. These depend on the code that runs: on CUDA,
elementwise functions are fused (`parallel/fused.py`), and in bf16 the delta rule is
flash-linear-attention's kernel; on a CPU they run one by one, most with hand-written gradients, and
small projections are one product. Saved tensors are listed in the order of the code; tests compare
their sum with what autograd saves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from parallel.layers import SMALL
from pretrain.config.memory import FP32
from pretrain.config.schema import ModelConfig
from pretrain.model.flops import block_forward, delta_rule_forward


class Rows(NamedTuple):
    """What a block reads in a unit, on one rank."""

    kind: str  # "attention" | "delta"
    rows: float  # B, of a microbatch; with context parallelism, this rank's share
    tokens: int  # T, of the window
    past: int = 0  # keys of earlier windows
    write_only: bool = False


class BlockBytes(NamedTuple):
    """What one block holds on one rank for the backward of a unit."""

    h: float  # the incoming hidden states
    S: float  # the incoming fast weights
    kept: float  # saved for backward, including h and S, without weights
    gradients: float = 0.0  # activation gradients that live at once in backward


@dataclass(frozen=True)
class BlockWork:
    """The work of a block's forward on one rank."""

    products: float  # FLOPs of the linears
    attention: float  # FLOPs of attention's scores and of the weighted sum of values
    delta: float  # FLOPs of the delta rule
    moved: float  # bytes that elementwise work reads and writes
    launches: float  # number of operations
    bytes: BlockBytes


class BlockCounter:
    """Counts the blocks of one model, for one way of running it."""

    def __init__(
        self,
        model: ModelConfig,
        *,
        tp: int = 1,
        sequence_parallel: bool = False,
        half: bool = False,
        fused: bool = False,
        kernel: bool = False,
    ) -> None:
        """
        Args:
            half: activations are bf16. fused: elementwise functions are single kernels.
            kernel: the delta rule is one.
        """
        self._model, self._tp, self._bytes = model, tp, 2 if half else FP32
        self._fused, self._kernel = fused, kernel
        # widths on this rank, in elements per token
        self._stream = model.d_model / (tp if sequence_parallel else 1)
        self._mlp = model.mlp_width / tp
        self._queries = model.attention_heads * model.attention_head_dim / tp
        self._kv = model.attention_kv_heads * model.attention_head_dim / tp
        self._heads = model.delta_value_heads / tp
        self._keys = model.delta_keys / tp  # before they are shared
        self._values = model.delta_values / tp
        self._done: dict[Rows, BlockWork] = {}

    def work(self, unit: Rows) -> BlockWork:
        """The work of one block."""
        if unit not in self._done:
            self._done[unit] = self._work(unit)
        return self._done[unit]

    def _work(self, unit: Rows) -> BlockWork:
        kind, rows, tokens, past, write_only = unit
        n, model = rows * tokens, self._model
        flops = n * block_forward(model, kind, tokens, past, write_only) / self._tp
        attention = delta = S = 0.0
        if kind == "attention" and not write_only:
            attention = n * 4 * self._queries * (tokens + past)
        elif kind == "delta":
            delta = n * delta_rule_forward(model, tokens, write_only) / self._tp
            S = rows * self._heads * model.delta_key_dim * model.delta_value_dim * FP32
        chunks = 1 if self._kernel else tokens / min(model.delta_chunk, tokens)
        moved, launches = self._traffic(unit, chunks)
        gradients = self._stream + (self._keys if write_only else 2 * self._mlp)
        return BlockWork(
            products=flops - attention - delta,
            attention=attention,
            delta=delta,
            moved=n * self._bytes * moved,
            launches=launches,
            bytes=BlockBytes(
                h=n * self._bytes * self._stream,
                S=S,
                kept=n * self._bytes * self._kept(unit) + S * chunks + self._packed(unit),
                gradients=n * self._bytes * gradients,
            ),
        )

    # ---- what is saved for backward, in elements per token, without S

    def _kept(self, unit: Rows) -> float:
        mixer = self._attention if unit.kind == "attention" else self._delta
        if unit.write_only:
            return self._norm() + mixer(unit)
        return 2 * self._norm() + mixer(unit) + (3 if self._fused else 4) * self._mlp

    def _norm(self) -> float:
        """A norm's input, on the CPU also its rms; and its output, gathered for all tp ranks."""
        return self._stream + (0 if self._fused else 1) + self._model.d_model

    def _is_packed(self, unit: Rows) -> bool:
        """Whether a mixer's projections are one product (`parallel.layers.project`)."""
        return not self._fused and self._projected(unit) * self._model.d_model <= SMALL

    def _projected(self, unit: Rows) -> float:
        """How many features a mixer's projections have."""
        if unit.kind == "attention":
            return 2 * self._kv + (0 if unit.write_only else 2 * self._queries)
        reads = 0 if unit.write_only else self._keys + self._values
        return 2 * self._heads + self._keys + self._values + reads

    def _packed(self, unit: Rows) -> float:
        """Bytes of the weights that are concatenated, in a mixer and in the MLP."""
        widths = [self._projected(unit), *([] if unit.write_only else [2 * self._mlp])]
        sizes = [width * self._model.d_model for width in widths]
        return 0 if self._fused else self._bytes * sum(size for size in sizes if size <= SMALL)

    def _attention(self, unit: Rows) -> float:
        kv, q = self._kv, self._queries
        sizes = 0 if self._fused else 1 / self._model.attention_head_dim
        # k as projected, with the size of each head, and rotated; v
        written = (2 + sizes) * kv + kv
        if unit.write_only:
            return written
        # q likewise; the result; gate, and the product that the output projection reads; the gate
        # as projected if it lies beside the others
        return written + (2 + sizes + 3) * q + (q if self._is_packed(unit) else 0)

    def _delta(self, unit: Rows) -> float:
        heads, values = self._heads, self._values
        mixed = self._keys + values if unit.write_only else 2 * self._keys + values
        if self._kernel:
            return self._delta_kernel(unit, mixed)
        C = min(self._model.delta_chunk, unit.tokens)
        K, V = self._model.delta_key_dim, self._model.delta_value_dim
        # gates; before the convolution and after it; keys of unit length, and their length
        kept = 7 * heads + mixed * (2 + (self._model.delta_conv_width - 1) / unit.tokens)
        unit_length = self._keys * (1 + 1 / K)
        kept += unit_length
        # of keys: three forms, and three of their products; of values: as they are, solved, written
        kept += heads * (3 * C + 3 * K + 3 * V + 3)
        if unit.write_only:
            return kept
        # of queries: unit length, two forms, their scores; o, its gate, the product
        kept += unit_length + heads * (C + 2 * K) + 3 * values + heads
        return kept + (mixed + 2 * heads if self._is_packed(unit) else 0)  # beside the gate

    def _delta_kernel(self, unit: Rows, mixed: float) -> float:
        heads, values = self._heads, self._values
        kept = 2 * mixed + heads * self._model.delta_chunk  # the kernel solves chunks of 64
        if not self._fused:
            kept += 3 * (mixed - values) + values  # unit length is computed in fp32
        if unit.write_only:
            return kept
        return kept + (3 if self._fused else 9) * values  # o, gate, product; norm in fp32

    # ---- what elementwise work moves, in elements per token, and operations

    def _traffic(self, unit: Rows, chunks: float) -> tuple[float, float]:
        D, F, fused = self._stream, self._mlp, self._fused
        casts = 1.6 if self._bytes < FP32 and not fused else 1.0  # to fp32 and back
        moved = (2 if fused else 5) * D  # the norm
        launches = 3.0 if fused else 8.0
        if unit.kind == "attention":
            kv, q = self._kv, self._queries
            moved += 2 * kv if fused else 10 * kv
            launches += 4 if fused else 16
            if not unit.write_only:
                moved += 5 * q if fused else 17 * q
                launches += 5 if fused else 24
        else:
            mixed = (1 if unit.write_only else 2) * self._keys + self._values
            moved += 2 * mixed if fused else 13 * mixed
            launches += 12 if fused else 40
            if not self._kernel:
                C, K = min(self._model.delta_chunk, unit.tokens), self._model.delta_key_dim
                moved += self._heads * (14 * C + 9 * K) + 4 * self._values
                launches += 40 + 10 * chunks
            if not unit.write_only:
                moved += (3 if fused else 10) * self._values
                launches += 6 if fused else 12
        if not unit.write_only:
            moved += 7 * D + 3 * F if fused else 11 * D + 5 * F
            launches += 6 if fused else 16
        return casts * moved, launches
