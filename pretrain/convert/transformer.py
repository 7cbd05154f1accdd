"""Imports transformers (Llama, Mistral, Qwen2, Qwen3) and inserts delta-rule blocks.

How our attention block is made to compute the same function as theirs before the first step:

    output gate     weights 0: sigmoid(0) = 1/2, and the output projection is twice theirs
    RMSNorm         theirs multiplies by w, ours by 1 + w
    query, key norm only Qwen3 has them: model.attention_qk_norm = false for the others

What Qwen3.5's block lacks too, so that such an import cannot be exported again:

    biases          of queries, keys and values in Qwen2: model.attention_qkv_bias = true
    Llama 3         long rotary wavelengths are stretched: model.rope_scaling_factor

New delta-rule blocks are initialised as usual, except that the output projections of mixer and MLP
are 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parallel.slices import all_finite
from parallel.window import PRETRAINED, UNSTRETCHED
from pretrain.config.schema import Config
from pretrain.convert.folder import TensorFolder
from pretrain.convert.names import OurTensor, Shape, packed_tensors
from pretrain.convert.qwen3_5 import Tables, middle_half, rope_parameters, rope_type
from pretrain.errors import UserError, shortened
from pretrain.model.hybrid import initial_value

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
DELTA_EVERY = 4  # as in the paper's 1.4B model: six new blocks for twenty-four
DELTA_WIDTH = 128  # of a head, the most portable one
# theirs: ours
SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "d_model",
    "intermediate_size": "mlp_width",
    "num_attention_heads": "attention_heads",
    "num_key_value_heads": "attention_kv_heads",
    "rms_norm_eps": "norm_eps",
}
COUNTS = ("num_hidden_layers", "hidden_size", "num_attention_heads")  # used in arithmetic here
MOST_LAYERS = 10_000  # no model has so many, but a damaged file may say anything
# Keys whose other values our blocks cannot represent.
FIXED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
}
MISTRAL_BAND = 4096  # transformers' default if config.json has none
# Required values for rope_type "llama3"; the factor is free.
LLAMA3 = {
    "low_freq_factor": 1,
    "high_freq_factor": UNSTRETCHED,
    "original_max_position_embeddings": PRETRAINED,
}
NAMES = {
    "mixer_norm": "input_layernorm",
    "mixer.q": "self_attn.q_proj",
    "mixer.k": "self_attn.k_proj",
    "mixer.v": "self_attn.v_proj",
    "mixer.out": "self_attn.o_proj",
    "mixer.q_norm": "self_attn.q_norm",
    "mixer.k_norm": "self_attn.k_norm",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
ENDS = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}


def tables(theirs: dict[str, Any], path: Path, every: int) -> tuple[Tables, list[str]]:
    """The settings of a run that starts from a config.json's model; and default sizes of the new
    blocks, as overrides that later ones may change.

    Raises:
        UserError: the model has something that ours does not.
    """
    for name, value in FIXED.items():
        if theirs.get(name, value) != value:
            raise UserError(f"{path}: {name} = {theirs[name]!r}; only {value!r} is supported")
    if missing := [name for name in (*SIZES, "num_hidden_layers") if name not in theirs]:
        raise UserError(f"{path}: {missing[0]} is missing")
    if not all(type(theirs[name]) is int and theirs[name] > 0 for name in COUNTS):
        raise UserError(f"{path}: {', '.join(COUNTS)} must be whole numbers from 1")
    model = {ours: theirs[name] for name, ours in SIZES.items()}
    band = theirs.get("sliding_window", MISTRAL_BAND)
    if theirs["model_type"] == "mistral" and band is not None:
        same = "if sleep.window is never to exceed it, it has no effect: write null there"
        raise UserError(f"{path}: sliding_window = {band!r}; {same}")
    if theirs["num_hidden_layers"] > MOST_LAYERS:
        raise UserError(f"{path}: num_hidden_layers is more than {MOST_LAYERS:,}")
    head = theirs.get("head_dim") or model["d_model"] // model["attention_heads"]
    if type(head) is not int:
        raise UserError(f"{path}: head_dim = {shortened(repr(head))}: must be a whole number")
    layers = _layers(theirs["num_hidden_layers"], every)
    model |= {
        "layers": layers,
        "attention_head_dim": head,
        "attention_qk_norm": theirs["model_type"] == "qwen3",
        "attention_qkv_bias": theirs["model_type"] == "qwen2",
        "rotary_fraction": 1.0,
        **_rope(theirs, path),
        "tie_embeddings": theirs.get("tie_word_embeddings", False),
    }
    width = DELTA_WIDTH if model["d_model"] % DELTA_WIDTH == 0 else head
    heads = max(1, model["d_model"] // width)
    shape = {"key_heads": heads, "value_heads": heads, "key_dim": width, "value_dim": width}
    defaults = [f"model.delta_{name}={size}" for name, size in shape.items()]
    return {"model": model, "sleep": middle_half(len(layers))}, defaults


def _layers(attention: int, every: int) -> list[str]:
    """The layers, with a new block in the middle of every `every`."""
    layers = []
    for number in range(attention):
        if number % every == every // 2:
            layers.append("delta")
        layers.append("attention")
    return layers


def _rope(theirs: dict[str, Any], path: Path) -> dict[str, float]:
    """The settings of the rotary wavelengths."""
    rope = rope_parameters(theirs, path, ("default", "llama3"))
    theta = rope.get("rope_theta", theirs.get("rope_theta", 1e4))
    if rope_type(rope) == "default":
        return {"rope_theta": theta}
    beside = "original_max_position_embeddings"  # of the table, where transformers goes by it
    rope = rope | ({beside: theirs[beside]} if beside in theirs else {})
    for name, value in LLAMA3.items():
        if rope.get(name) != value:
            found = shortened(repr(rope.get(name)))
            raise UserError(f"{path}: {name} = {found}; only {value!r} is supported")
    if "factor" not in rope:
        raise UserError(f"{path}: factor is missing, which rope_type = 'llama3' needs")
    return {"rope_theta": theta, "rope_scaling_factor": rope["factor"]}


def weights(tensors: TensorFolder, config: Config) -> Iterator[Tensor]:
    """Our parameters in the order of `packed_tensors`, fp32, read one by one."""
    for packed in packed_tensors(config.model):
        for part in packed.parts:
            value = _value(part, tensors, config)
            if not all_finite(value):
                raise UserError(f"{tensors.folder}: {packed.name} is not finite")
            yield value
            del value


def _value(part: OurTensor, tensors: TensorFolder, config: Config) -> Tensor:
    """One of our parameters."""
    if not part.name.startswith("blocks."):
        end = part.name.removesuffix(".weight")
        value = tensors.get(f"{ENDS[end]}.weight", part.shape).float()
        return value - 1 if end == "norm" else value
    _, block, name = part.name.split(".", 2)
    if config.model.layers[int(block)] == "delta":
        return _new(part.name, part.shape, config)
    if name == "mixer.gate.weight":
        return torch.zeros(part.shape)
    layer = config.model.layers[: int(block)].count("attention")
    value = tensors.get(f"model.layers.{layer}.{_theirs(name)}", part.shape).float()
    if name.endswith("norm.weight"):
        return value - 1
    return 2 * value if name == "mixer.out.weight" else value


def _theirs(name: str) -> str:
    """mixer.q.weight -> self_attn.q_proj.weight, mixer.q_bias -> self_attn.q_proj.bias."""
    if name.endswith("_bias"):
        return f"{NAMES[name.removesuffix('_bias')]}.bias"
    return f"{NAMES[name.removesuffix('.weight')]}.weight"


def _new(name: str, shape: Shape, config: Config) -> Tensor:
    """The initial value of a new block's parameter."""
    if name.endswith(("mixer.out.weight", "mlp.down.weight")):
        return torch.zeros(shape)
    return initial_value(name, shape, config.model, config.run.seed)


def left_out(tensors: TensorFolder, config: Config) -> list[str]:
    """Nothing is left out. UserError: there are tensors that ours cannot hold, such as biases."""
    layers = range(config.model.layers.count("attention"))
    known = {f"{name}.weight" for name in ENDS.values()}
    names = [f"{name}.weight" for name in NAMES]
    names += ["mixer.q_bias", "mixer.k_bias", "mixer.v_bias"] * config.model.attention_qkv_bias
    known |= {f"model.layers.{i}.{_theirs(name)}" for i in layers for name in names}
    buffers = "rotary_emb.inv_freq"  # in old files; redundant with rope_theta
    others = [n for n in tensors.names() if n not in known and not n.endswith(buffers)]
    if others:
        raise UserError(f"{tensors.folder}: tensor {shortened(others[0])} is not supported")
    return []
