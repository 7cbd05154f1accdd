"""The sizes of one hybrid block, and the legend of the shape letters.

Shape letters used throughout `parallel/` and `pretrain/`:

    B batch   T time   L window   W windows   N passes   D model width   F MLP width
    H heads   K key width of a head   V value width of a head   P stages
    C context-parallel ranks   t this rank's tokens of a window, T without context parallelism
"""

from __future__ import annotations

from dataclasses import dataclass

from parallel.setting import setting

# Added to the squared length of the delta rule's keys and queries, independent of norm_eps; the
# value is flash-linear-attention's.
UNIT_EPS = 1e-6


@dataclass(kw_only=True)
class BlockShape:
    """Sizes of the attention, delta-rule and MLP parts of a block.

    Each has an equivalent in transformers' `Qwen3_5TextConfig`; where its name differs, it is given
    in (parentheses). Those without an equivalent: delta_chunk changes only how a result is
    computed; delta_negative_eigenvalues (flash-linear-attention's `allow_neg_eigval`) makes a
    different model, and so do those that other pretrained transformers need: no attention_qk_norm,
    attention_qkv_bias, rope_scaling_factor.
    """

    d_model: int = setting(256, "D, width of the residual stream (hidden_size)", at_least=1)

    attention_heads: int = setting(4, "query heads (num_attention_heads)", at_least=1)
    attention_kv_heads: int = setting(
        4, "key/value heads; divides attention_heads (num_key_value_heads)", at_least=1
    )
    attention_head_dim: int = setting(64, "width of an attention head (head_dim)", at_least=1)
    attention_qk_norm: bool = setting(
        True, "normalise each head's queries and keys; false, as in Llama, cannot be exported"
    )
    attention_qkv_bias: bool = setting(
        False, "biases for queries, keys and values; true, as in Qwen2, cannot be exported"
    )
    rotary_fraction: float = setting(
        0.25,
        "share of each head's features that are rotated (rope_parameters.partial_rotary_factor)",
        above=0,
        at_most=1,
    )
    rope_theta: float = setting(
        10_000.0, "base of the rotary wavelengths (rope_parameters.rope_theta)", above=0
    )
    rope_scaling_factor: float = setting(
        1.0,
        "rotary wavelengths of more than 8,192 positions are stretched by this factor, as in Llama "
        "3.1; other than 1 cannot be exported",
        at_least=1,
    )

    delta_key_heads: int = setting(
        4,
        "query/key heads of the delta rule; divides delta_value_heads (linear_num_key_heads)",
        at_least=1,
    )
    delta_value_heads: int = setting(
        4,
        "value heads: one fast-weight matrix S [K, V] each (linear_num_value_heads)",
        at_least=1,
    )
    delta_key_dim: int = setting(64, "K, width of a key (linear_key_head_dim)", at_least=1)
    delta_value_dim: int = setting(64, "V, width of a value (linear_value_head_dim)", at_least=1)
    delta_conv_width: int = setting(
        4, "taps of the causal depthwise convolution (linear_conv_kernel_dim)", at_least=2
    )
    delta_negative_eigenvalues: bool = setting(
        False,
        "write strengths up to 2 (b_t = 2 sigmoid), so that a write can negate the value stored "
        "under its key: needed to track a state in one pass (arXiv 2411.12537)",
    )
    delta_chunk: int = setting(64, "chunk size, in tokens, of the chunked delta rule", at_least=1)

    mlp_width: int = setting(1024, "F, width of the MLP (intermediate_size)", at_least=1)
    norm_eps: float = setting(1e-6, "epsilon of the RMS norms (rms_norm_eps)", above=0)

    @property
    def rotary_dim(self) -> int:
        """Features of an attention head that are rotated."""
        return int(self.attention_head_dim * self.rotary_fraction)

    @property
    def delta_keys(self) -> int:
        """Total width of the delta rule's keys over all heads, and of its queries."""
        return self.delta_key_heads * self.delta_key_dim

    @property
    def delta_values(self) -> int:
        """Total width of the delta rule's values over all heads."""
        return self.delta_value_heads * self.delta_value_dim
