"""Which engines can read a model of a given shape, and why the others cannot.

As tested with transformers 5.23, xllamacpp 2026.10 (llama.cpp), mlx-lm 0.32, mistralrs 0.9 and vLLM
0.32; `make test-engines` repeats the first four.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from parallel.shape import UNIT_EPS
from pretrain.config.checks import uses_tokenizer
from pretrain.config.schema import Config, ModelConfig
from pretrain.convert.vocabulary import vocabulary
from pretrain.errors import UserError

ENGINES = ("transformers", "mistral.rs", "llama.cpp (gguf)", "mlx-lm", "vLLM")


def interval(layers: Sequence[str]) -> int | None:
    """n, if exactly the last of every n blocks is attention; None: another layout."""
    if "attention" not in layers:
        return None
    every = layers.index("attention") + 1
    rule = ["attention" if (b + 1) % every == 0 else "delta" for b in range(len(layers))]
    return every if rule == list(layers) else None


def reasons(config: Config) -> dict[str, str | None]:
    """By engine, why it cannot read such a model; None if it can."""
    model = config.model
    if why := _another_model(config):
        return dict.fromkeys(ENGINES, f"{why}: no other software supports such a model")
    not_last = "model.layers: attention must be the last of every n blocks, and nowhere else"
    return {
        "transformers": None,
        "mistral.rs": _mistral_rs(config) if "attention" in model.layers else None,
        "llama.cpp (gguf)": _llama_cpp(model) if "delta" in model.layers else None,
        "mlx-lm": None if interval(model.layers) else not_last,
        "vLLM": _vllm(model) if "delta" in model.layers else None,
    }


def _another_model(config: Config) -> str | None:
    """The setting that makes it a different function from Qwen3.5, if there is one."""
    model = config.model
    if "attention" in model.layers:
        if not model.attention_qk_norm:
            return "model.attention_qk_norm = false"
        if model.attention_qkv_bias:
            return "model.attention_qkv_bias = true"
        if model.rope_scaling_factor != 1:
            return f"model.rope_scaling_factor = {model.rope_scaling_factor:g}"
    if model.delta_negative_eigenvalues and "delta" in model.layers:
        return "model.delta_negative_eigenvalues = true"
    return "its [sleep] settings are a control" if config.sleep.is_control else None


def _mistral_rs(config: Config) -> str | None:
    rotated = config.model.rotary_dim
    if rotated < 6:
        return f"model.rotary_fraction rotates {rotated} dimensions of a head; it needs at least 6"
    if config.sleep.window < 1024:
        short = f"sleep.window = {config.sleep.window}"
        return f"{short}: it reserves 512 tokens beyond the prompt, which must fit in the window"
    return None


def _llama_cpp(model: ModelConfig) -> str | None:
    if model.delta_key_dim != model.delta_value_dim:
        return f"{_widths(model)} differ; llama.cpp has one width for both"
    if model.norm_eps != UNIT_EPS:
        adds = f"model.norm_eps = {model.norm_eps:g}: llama.cpp also adds it"
        return f"{adds} to the norms of the delta rule's queries and keys; Hypnos adds {UNIT_EPS:g}"
    return None


def _vllm(model: ModelConfig) -> str | None:
    if {model.delta_key_dim, model.delta_value_dim} <= {64, 128}:
        return None
    return f"{_widths(model)}: vLLM's kernels were found to support only 64 and 128"


def _widths(model: ModelConfig) -> str:
    return (
        f"model.delta_key_dim = {model.delta_key_dim} and "
        f"model.delta_value_dim = {model.delta_value_dim}"
    )


def check_hf(config: Config) -> None:
    """UserError if no Hugging Face folder can hold the model."""
    if why := reasons(config)["transformers"]:
        raise UserError(f"{why}; nothing can be exported")


def check_gguf(config: Config) -> None:
    """UserError if a GGUF file cannot hold the model, or its tokenizer."""
    check_hf(config)
    if why := reasons(config)["llama.cpp (gguf)"]:
        raise UserError(f"{why}: such a model can be exported with --to hf, but not with --to gguf")
    if not uses_tokenizer(config):
        raise UserError(
            "the run's task has no tokenizer, which a GGUF file must contain: use --to hf"
        )
    vocabulary(Path(config.data.tokenizer))


def early_warning(config: Config) -> str | None:
    """A warning at the start of training if the model cannot be exported, or not as a GGUF file,
    which nobody expects of a task without a tokenizer.
    """
    refused = reasons(config)
    if why := refused["transformers"]:
        return f"`hypnos export` will refuse this model: {why}"
    why = refused["llama.cpp (gguf)"] if uses_tokenizer(config) else None
    return f"`hypnos export --to gguf` will refuse this model: {why}" if why else None
