"""Maps our parameters to the tensors of transformers' Qwen3.5 dense hybrid, and back.

Layer for layer the two are the same function. We keep every projection as its own parameter;
Qwen3.5 packs some of them into one tensor:

    q_proj        [H, q | gate, head] x D    per attention head, the query's rows, then the gate's
    in_proj_qkv   [q | k | v] x D            all heads' queries, keys, values
    conv1d        [q | k | v] x 1 x taps     channels in the same order

Norm weights are zero-centred in both (1 + w), except for the delta rule's output norm, a plain one
in both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pretrain.config.schema import ModelConfig

Shape = tuple[int, ...]


class OurTensor(NamedTuple):
    """One of our parameters, whole."""

    name: str
    shape: Shape


@dataclass(frozen=True)
class Packed:
    """One of their tensors, and our parameters that are packed in it along its first dimension."""

    name: str
    shape: Shape
    parts: tuple[OurTensor, ...]
    heads: int = 1  # if > 1, the parts are interleaved head by head

    def places(self, whole: Tensor) -> list[Tensor]:
        """The place of each part in their tensor: views of the part's shape, or [heads, rows, ...]
        if the parts are interleaved.
        """
        rows = [part.shape[0] // self.heads for part in self.parts]
        by_head = whole.view(self.heads, sum(rows), -1).split(rows, dim=1)
        if self.heads > 1:
            return list(by_head)
        return [v[0].view(p.shape) for v, p in zip(by_head, self.parts, strict=True)]

    def pack(
        self, read: Callable[[OurTensor, Tensor | None], Tensor], dtype: torch.dtype
    ) -> Tensor:
        """Their tensor from our parts, which are read one by one.

        Args:
            read: returns a part; if a tensor is passed, writes into it.
        """
        whole = torch.empty(self.shape, dtype=dtype)
        for part, place in zip(self.parts, self.places(whole), strict=True):
            if place.shape == part.shape:
                read(part, place)
            else:
                place.copy_(read(part, None).view(place.shape))
        return whole

    def unpack(self, whole: Tensor) -> Iterator[Tensor]:
        """Our parts from their tensor, one by one, each contiguous."""
        for part, place in zip(self.parts, self.places(whole), strict=True):
            yield place.reshape(part.shape).contiguous()


def packed_tensors(config: ModelConfig) -> Iterator[Packed]:
    """Every tensor of `Qwen3_5ForCausalLM`, in the order of its layers."""
    D, V = config.d_model, config.vocab_size
    yield _same("model.embed_tokens.weight", "embed.weight", (V, D))
    for block, kind in enumerate(config.layers):
        theirs, ours = f"model.layers.{block}", f"blocks.{block}"
        yield _same(f"{theirs}.input_layernorm.weight", f"{ours}.mixer_norm.weight", (D,))
        mixer = _attention if kind == "attention" else _delta
        yield from mixer(config, theirs, f"{ours}.mixer")
        yield _same(f"{theirs}.post_attention_layernorm.weight", f"{ours}.mlp_norm.weight", (D,))
        for name in ("gate", "up", "down"):
            shape = (D, config.mlp_width) if name == "down" else (config.mlp_width, D)
            yield _same(f"{theirs}.mlp.{name}_proj.weight", f"{ours}.mlp.{name}.weight", shape)
    yield _same("model.norm.weight", "norm.weight", (D,))
    if not config.tie_embeddings:
        yield _same("lm_head.weight", "head.weight", (V, D))


def _attention(config: ModelConfig, theirs: str, ours: str) -> Iterator[Packed]:
    D, head, heads = config.d_model, config.attention_head_dim, config.attention_heads
    kv, theirs = config.attention_kv_heads * head, f"{theirs}.self_attn"
    parts = tuple(OurTensor(f"{ours}.{name}.weight", (heads * head, D)) for name in ("q", "gate"))
    yield Packed(f"{theirs}.q_proj.weight", (2 * heads * head, D), parts, heads)
    for name in ("k", "v"):
        yield _same(f"{theirs}.{name}_proj.weight", f"{ours}.{name}.weight", (kv, D))
    # Qwen3.5 has no such biases: they are imported from Qwen2, but cannot be exported.
    biases = {"q": heads * head, "k": kv, "v": kv} if config.attention_qkv_bias else {}
    for name, size in biases.items():
        yield _same(f"{theirs}.{name}_proj.bias", f"{ours}.{name}_bias", (size,))
    for name in ("q_norm", "k_norm") if config.attention_qk_norm else ():
        yield _same(f"{theirs}.{name}.weight", f"{ours}.{name}.weight", (head,))
    yield _same(f"{theirs}.o_proj.weight", f"{ours}.out.weight", (D, heads * head))


def _delta(config: ModelConfig, theirs: str, ours: str) -> Iterator[Packed]:
    D, taps, heads = config.d_model, config.delta_conv_width, config.delta_value_heads
    keys, values = config.delta_keys, config.delta_values
    streams, theirs = {"q": keys, "k": keys, "v": values}, f"{theirs}.linear_attn"
    channels = sum(streams.values())
    rows = tuple(OurTensor(f"{ours}.{name}.weight", (size, D)) for name, size in streams.items())
    filters = tuple(
        OurTensor(f"{ours}.conv_{name}", (size, taps)) for name, size in streams.items()
    )
    yield Packed(f"{theirs}.in_proj_qkv.weight", (channels, D), rows)
    yield Packed(f"{theirs}.conv1d.weight", (channels, 1, taps), filters)
    for name, mine, size in (("z", "gate", values), ("b", "beta", heads), ("a", "alpha", heads)):
        yield _same(f"{theirs}.in_proj_{name}.weight", f"{ours}.{mine}.weight", (size, D))
    for name in ("A_log", "dt_bias"):
        yield _same(f"{theirs}.{name}", f"{ours}.{name}", (heads,))
    yield _same(f"{theirs}.norm.weight", f"{ours}.norm.weight", (config.delta_value_dim,))
    yield _same(f"{theirs}.out_proj.weight", f"{ours}.out.weight", (D, values))


def _same(theirs: str, ours: str, shape: Shape) -> Packed:
    return Packed(theirs, shape, (OurTensor(ours, shape),))
