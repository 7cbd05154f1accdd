"""Our hybrid in transformers: Qwen3.5 with the sizes of a model of ours."""

from __future__ import annotations

from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

from pretrain.config.schema import Config, ModelConfig
from pretrain.convert.qwen3_5 import to_json


def hybrid(shape: ModelConfig) -> Qwen3_5ForCausalLM:
    """The model, with random weights, for texts of any length."""
    sizes = to_json(Config(model=shape), step=0) | {"max_position_embeddings": 1 << 21}
    return Qwen3_5ForCausalLM(Qwen3_5TextConfig(**sizes))
