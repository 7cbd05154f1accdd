"""Which engines read a model of some shape, and why the others do not.

As it was tried with transformers 5.23, xllamacpp 2026.10 (llama.cpp), mlx-lm 0.32, mistralrs 0.9
and vLLM 0.32; `make test-engines` tries the first four again.
"""

from __future__ import annotations

from pretrain.config.schema import ModelConfig
from pretrain.errors import UserError


def interval(layers: list[str]) -> int | None:
    """n, where attention is the last of every n blocks and nowhere else; None: no such layout."""
    if "attention" not in layers:
        return None
    every = layers.index("attention") + 1
    rule = ["attention" if (b + 1) % every == 0 else "delta" for b in range(len(layers))]
    return every if rule == list(layers) else None


def reasons(model: ModelConfig) -> dict[str, str | None]:
    """By engine, why it does not read this shape; None where it does."""
    keys, values = model.delta_key_dim, model.delta_value_dim
    has_delta = "delta" in model.layers
    widths = f"model.delta_key_dim = {keys} and model.delta_value_dim = {values}"
    llama = f"{widths} differ; llama.cpp holds one width for both"
    vllm = f"{widths}: vLLM's kernels were found to hold 64 and 128 only"
    mlx = "model.layers: attention must be the last of every n blocks, and nowhere else"
    return {
        "transformers": None,
        "mistral.rs": None,
        "llama.cpp (gguf)": llama if has_delta and keys != values else None,
        "mlx-lm": mlx if interval(list(model.layers)) is None else None,
        "vLLM": vllm if has_delta and not {keys, values} <= {64, 128} else None,
    }


def check_gguf(model: ModelConfig, has_tokenizer: bool) -> None:
    """UserError if a GGUF file cannot hold the model."""
    if why := reasons(model)["llama.cpp (gguf)"]:
        raise UserError(f"{why}: such a model goes out with --to hf, but not with --to gguf")
    if not has_tokenizer:
        raise UserError(
            "the run's task has no tokenizer, and a GGUF file is none without one: use --to hf"
        )


def early_warning(model: ModelConfig) -> str | None:
    """A line for who begins to train what will not become a GGUF file."""
    why = reasons(model)["llama.cpp (gguf)"]
    return f"`hypnos export --to gguf` will refuse this model: {why}" if why else None
