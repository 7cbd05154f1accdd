"""The sizes of one hybrid block, and nothing else.

Shape letters used throughout `parallel/` and `pretrain/`:

    B batch   T time   L window   W windows   N passes   D model width   F MLP width
    H heads   K key width of a head   V value width of a head   P stages
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True)
class BlockShape:
    """Sizes of the attention, delta-rule and MLP parts of a block.

    The names and their meaning are those of transformers' `Qwen3_5TextConfig`,
    so that a trained model is exported by renaming.
    """

    d_model: int = 256  # D, width of the residual stream

    attention_heads: int = 4  # query heads
    attention_kv_heads: int = 4  # key/value heads; divides attention_heads
    attention_head_dim: int = 64
    rotary_fraction: float = 0.25  # share of each head's width that is rotated
    rope_theta: float = 10_000.0

    delta_key_heads: int = 4  # query/key heads of the delta rule; divides delta_value_heads
    delta_value_heads: int = 4  # value heads: one fast-weight matrix S [K, V] each
    delta_key_dim: int = 64  # K
    delta_value_dim: int = 64  # V
    delta_conv_width: int = 4  # taps of the causal depthwise convolution
    delta_chunk: int = 64  # tokens solved at once by the chunked form

    mlp_width: int = 1024  # F
    norm_eps: float = 1e-6
