"""transformers' Qwen3_5ForCausalLM with the sizes and the weights of a SleepLM."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

from pretrain.config.schema import ModelConfig
from pretrain.model.sleep import SleepLM
from tests.oracles.double import in_double

ATTENTION = {"k": "k_proj", "v": "v_proj", "out": "o_proj", "q_norm": "q_norm", "k_norm": "k_norm"}
DELTA = {
    "gate": "in_proj_z",
    "beta": "in_proj_b",
    "alpha": "in_proj_a",
    "norm": "norm",
    "out": "out_proj",
}


def from_hybrid(model: SleepLM) -> Qwen3_5ForCausalLM:
    """The same function in transformers' code, in the model's dtype, with no gradients yet."""
    c, dtype = model.config, model.norm.weight.dtype
    config = Qwen3_5TextConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.d_model,
        intermediate_size=c.mlp_width,
        num_hidden_layers=len(c.layers),
        layer_types=[
            {"attention": "full_attention", "delta": "linear_attention"}[kind] for kind in c.layers
        ],
        num_attention_heads=c.attention_heads,
        num_key_value_heads=c.attention_kv_heads,
        head_dim=c.attention_head_dim,
        attention_bias=False,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": c.rope_theta,
            "partial_rotary_factor": c.rotary_fraction,
        },
        linear_num_key_heads=c.delta_key_heads,
        linear_num_value_heads=c.delta_value_heads,
        linear_key_head_dim=c.delta_key_dim,
        linear_value_head_dim=c.delta_value_dim,
        linear_conv_kernel_dim=c.delta_conv_width,
        rms_norm_eps=c.norm_eps,
        hidden_act="silu",
        tie_word_embeddings=c.tie_embeddings,
        use_cache=False,
    )
    config._attn_implementation = "eager"
    with in_double(dtype == torch.float64):
        qwen = Qwen3_5ForCausalLM(config)
    qwen.to(dtype)
    # Our rotary table is fp32 whatever the model's dtype; this one is rounded to fp32, in fp64 too.
    qwen.model.rotary_emb.register_forward_hook(
        lambda _module, _inputs, table: tuple(x.to(torch.float32).to(x.dtype) for x in table)
    )
    with torch.no_grad():
        parameters = dict(qwen.named_parameters())
        filled = by_our_names(c, lambda name: parameters[name].data)
        ours = dict(model.named_parameters())
        assert filled.keys() == ours.keys(), filled.keys() ^ ours.keys()
        assert sum(t.numel() for t in filled.values()) == sum(
            p.numel() for p in parameters.values()
        )
        for name, view in filled.items():
            view.copy_(ours[name].view(view.shape))
    return qwen


def gradients(qwen: Qwen3_5ForCausalLM, c: ModelConfig) -> dict[str, Tensor]:
    """Gradients of transformers' parameters under our names (zeros where there is none)."""
    parameters = dict(qwen.named_parameters())

    def grad(name: str) -> Tensor:
        p = parameters[name]
        return torch.zeros_like(p) if p.grad is None else p.grad

    return by_our_names(c, grad)


def by_our_names(c: ModelConfig, get: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """Views into transformers' tensors, one for each parameter of ours (up to a reshape)."""
    views = {
        "embed.weight": get("model.embed_tokens.weight"),
        "norm.weight": get("model.norm.weight"),
    }
    if not c.tie_embeddings:
        views["head.weight"] = get("lm_head.weight")
    for i, kind in enumerate(c.layers):
        theirs, mixer = f"model.layers.{i}", f"blocks.{i}.mixer"
        views[f"blocks.{i}.mixer_norm.weight"] = get(f"{theirs}.input_layernorm.weight")
        views[f"blocks.{i}.mlp_norm.weight"] = get(f"{theirs}.post_attention_layernorm.weight")
        for part in ("gate", "up", "down"):
            views[f"blocks.{i}.mlp.{part}.weight"] = get(f"{theirs}.mlp.{part}_proj.weight")
        if kind == "attention":
            q_and_gate = get(f"{theirs}.self_attn.q_proj.weight")
            per_head = q_and_gate.view(c.attention_heads, 2, c.attention_head_dim, c.d_model)
            views[f"{mixer}.q.weight"], views[f"{mixer}.gate.weight"] = (
                per_head[:, 0],
                per_head[:, 1],
            )
            for ours, name in ATTENTION.items():
                views[f"{mixer}.{ours}.weight"] = get(f"{theirs}.self_attn.{name}.weight")
        else:
            keys, values = (
                c.delta_key_heads * c.delta_key_dim,
                c.delta_value_heads * c.delta_value_dim,
            )
            projection = get(f"{theirs}.linear_attn.in_proj_qkv.weight").split([keys, keys, values])
            convolution = (
                get(f"{theirs}.linear_attn.conv1d.weight").squeeze(1).split([keys, keys, values])
            )
            for ours, rows, taps in zip("qkv", projection, convolution, strict=True):
                views[f"{mixer}.{ours}.weight"], views[f"{mixer}.conv_{ours}"] = rows, taps
            for ours, name in DELTA.items():
                views[f"{mixer}.{ours}.weight"] = get(f"{theirs}.linear_attn.{name}.weight")
            views[f"{mixer}.A_log"] = get(f"{theirs}.linear_attn.A_log")
            views[f"{mixer}.dt_bias"] = get(f"{theirs}.linear_attn.dt_bias")
    return views
