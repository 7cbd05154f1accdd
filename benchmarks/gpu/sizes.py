"""The sizes of the measured models, and their batches."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.gpu.record import is_tiny
from benchmarks.rows import random_rows
from pretrain.config.schema import ModelConfig, SleepConfig
from pretrain.data.batch import Batch


@dataclass(frozen=True)
class Size:
    """A model in the portable shape: heads of 128, attention last of every four blocks."""

    name: str
    d_model: int
    blocks: int
    heads: int  # of queries in attention, and of keys and values in the delta rule
    kv_heads: int
    mlp_width: int
    rows: int  # sequences per microbatch
    window: int
    head_dim: int = 128
    vocabulary: int = 32_768
    windows: int = 2
    microbatches: int = 4  # per step

    def model(self) -> ModelConfig:
        """The portable shape, with a tied head, which the recipes no longer have."""
        return ModelConfig(
            d_model=self.d_model,
            layers=["delta", "delta", "delta", "attention"] * (self.blocks // 4),
            attention_heads=self.heads,
            attention_kv_heads=self.kv_heads,
            attention_head_dim=self.head_dim,
            delta_key_heads=self.heads,
            delta_value_heads=self.heads,
            delta_key_dim=self.head_dim,
            delta_value_dim=self.head_dim,
            mlp_width=self.mlp_width,
            vocab_size=self.vocabulary,
            tie_embeddings=True,
            decay_init=[0.001, 0.1],
        )

    def sleep(self, passes: int) -> SleepConfig:
        """Every window is scored, and all but the last are slept over."""
        return SleepConfig(passes=passes, window=self.window, when="always")

    def batch(self, rows: int | None = None) -> Batch:
        """Rows of random tokens."""
        return random_rows(rows or self.rows, self.windows, self.window, self.vocabulary)


TINY = Size("tiny", 64, 4, 2, 1, 96, rows=2, window=32, head_dim=32, vocabulary=128, microbatches=2)
SIZES = {
    "100M": Size("100M", 768, 12, 6, 2, 2048, rows=32, window=2048),
    "1B": Size("1B", 2048, 16, 16, 4, 6144, rows=8, window=2048),
}


def size(name: str) -> Size:
    """The size of that name; a tiny one on a CPU."""
    return TINY if is_tiny() else SIZES[name]
