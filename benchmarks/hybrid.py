"""Our hybrid in transformers: Qwen3.5 with the sizes of a model of ours."""

from __future__ import annotations

from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

from pretrain.config.schema import ModelConfig


def hybrid(shape: ModelConfig) -> Qwen3_5ForCausalLM:
    """The model, with random weights."""
    names = {"attention": "full_attention", "delta": "linear_attention"}
    return Qwen3_5ForCausalLM(
        Qwen3_5TextConfig(
            vocab_size=shape.vocab_size, hidden_size=shape.d_model,
            intermediate_size=shape.mlp_width, num_hidden_layers=len(shape.layers),
            layer_types=[names[kind] for kind in shape.layers],
            num_attention_heads=shape.attention_heads,
            num_key_value_heads=shape.attention_kv_heads, head_dim=shape.attention_head_dim,
            linear_num_key_heads=shape.delta_key_heads,
            linear_num_value_heads=shape.delta_value_heads,
            linear_key_head_dim=shape.delta_key_dim, linear_value_head_dim=shape.delta_value_dim,
            max_position_embeddings=1 << 21, tie_word_embeddings=shape.tie_embeddings,
            rope_parameters={
                "rope_type": "default", "rope_theta": shape.rope_theta,
                "partial_rotary_factor": shape.rotary_fraction,
            },
        )
    )  # fmt: skip
