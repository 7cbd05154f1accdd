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

    Each means the same as a setting of transformers' `Qwen3_5TextConfig`, whose other name stands
    in (parentheses); only delta_chunk has none there: it changes how a result is computed, not the
    result.
    """

    d_model: int = 256  # D, width of the residual stream (hidden_size)

    attention_heads: int = 4  # query heads (num_attention_heads)
    attention_kv_heads: int = 4  # key/value heads; divides attention_heads (num_key_value_heads)
    attention_head_dim: int = 64  # (head_dim)
    # share of each head's width that is rotated (rope_parameters.partial_rotary_factor)
    rotary_fraction: float = 0.25
    rope_theta: float = 10_000.0  # (rope_parameters.rope_theta)

    # query/key heads of the delta rule; divides delta_value_heads (linear_num_key_heads)
    delta_key_heads: int = 4
    # value heads: one fast-weight matrix S [K, V] each (linear_num_value_heads)
    delta_value_heads: int = 4
    delta_key_dim: int = 64  # K (linear_key_head_dim)
    delta_value_dim: int = 64  # V (linear_value_head_dim)
    delta_conv_width: int = 4  # taps of the causal depthwise convolution (linear_conv_kernel_dim)
    delta_chunk: int = 64  # tokens solved at once by the chunked form

    mlp_width: int = 1024  # F (intermediate_size)
    norm_eps: float = 1e-6  # (rms_norm_eps)
