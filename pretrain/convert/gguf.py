"""Writes a GGUF file for llama.cpp (architecture "qwen35") from an exported Hugging Face folder.

What llama.cpp stores differently from transformers:

    RMSNorm             the factor itself, 1 + w (the delta rule's output norm already is one)
    A_log               -exp(A_log)
    value heads         if a key head serves R value heads, these are adjacent in transformers
                        (k*R + r) and interleaved in llama.cpp (r*K + k)
    short convolution   [C, taps]
    layers              `attention.recurrent_layers`, a list, and the interval if there is one
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
import torch
from torch import Tensor

from pretrain.checkpoint import open_checkpoint
from pretrain.config.schema import Config, ModelConfig
from pretrain.convert import engines, export, qwen3_5
from pretrain.convert.folder import TensorFolder, new_file
from pretrain.convert.names import Packed, packed_tensors
from pretrain.convert.vocabulary import Vocabulary, vocabulary
from pretrain.errors import UserError
from pretrain.whole import draft_of

ARCHITECTURE = "qwen35"
KINDS = {
    torch.float32: gguf.GGMLQuantizationType.F32,
    torch.float16: gguf.GGMLQuantizationType.F16,
    torch.bfloat16: gguf.GGMLQuantizationType.BF16,
}
FILE_TYPES = {
    torch.float32: gguf.LlamaFileType.ALL_F32,
    torch.float16: gguf.LlamaFileType.MOSTLY_F16,
    torch.bfloat16: gguf.LlamaFileType.MOSTLY_BF16,
}
# Within a block, the last part of a name: transformers' -> llama.cpp's
NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "self_attn.q_proj.weight": "attn_q.weight",  # per head [q | gate] there, too
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "linear_attn.in_proj_qkv.weight": "attn_qkv.weight",
    "linear_attn.in_proj_z.weight": "attn_gate.weight",
    "linear_attn.in_proj_b.weight": "ssm_beta.weight",
    "linear_attn.in_proj_a.weight": "ssm_alpha.weight",
    "linear_attn.conv1d.weight": "ssm_conv1d.weight",
    "linear_attn.A_log": "ssm_a",
    "linear_attn.dt_bias": "ssm_dt.bias",
    "linear_attn.norm.weight": "ssm_norm.weight",
    "linear_attn.out_proj.weight": "ssm_out.weight",
}
ENDS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


class Target(NamedTuple):
    """A tensor of the file, and where it comes from."""

    name: str
    source: Packed
    convert: Callable[[Tensor], Tensor]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in the file: [C, 1, taps] becomes [C, taps]."""
        return tuple(size for d, size in enumerate(self.source.shape) if d != 1 or size != 1)

    @property
    def is_matrix(self) -> bool:
        """Whether it may be in half precision; llama.cpp wants all else, convolutions too, in
        fp32.
        """
        return len(self.source.shape) == 2


def targets(model: ModelConfig) -> Iterator[Target]:
    """Every tensor of the file, in order."""
    for source in packed_tensors(model):
        if source.name in ENDS:
            name, part = ENDS[source.name], source.name
        else:
            _, _, block, part = source.name.split(".", 3)
            name = f"blk.{block}.{NAMES[part]}"
        yield Target(name, source, _conversion(part, model))


def _conversion(part: str, model: ModelConfig) -> Callable[[Tensor], Tensor]:
    """How a tensor is converted, by the last part of its name."""
    keys, V = model.delta_keys, model.delta_value_dim

    def in_turn(x: Tensor, size: int, dim: int = 0) -> Tensor:
        """Reorders value heads, of `size` rows or columns each, from k*R + r to r*K + k."""
        K, R = model.delta_key_heads, model.delta_value_heads // model.delta_key_heads
        return x.unflatten(dim, (K, R, size)).transpose(dim, dim + 1).flatten(dim, dim + 2)

    def streams(x: Tensor) -> Tensor:
        """Reorders the value heads in [q | k | v]."""
        x = x.squeeze(1)
        return torch.cat([x[: 2 * keys], in_turn(x[2 * keys :], V)])

    match part.split(".")[-2:]:
        case ["linear_attn", "A_log"]:
            return lambda x: in_turn(-x.float().exp(), 1)
        case ["linear_attn", "dt_bias"] | ["in_proj_a" | "in_proj_b", _]:
            return lambda x: in_turn(x, 1)
        case ["in_proj_qkv" | "conv1d", _]:
            return streams
        case ["in_proj_z", _]:
            return lambda x: in_turn(x, V)
        case ["out_proj", _]:
            return lambda x: in_turn(x, V, dim=1)
        case ["norm", _] if part.startswith("linear_attn"):
            return lambda x: x
        case [name, _] if "norm" in name:
            return lambda x: 1 + x.float()
        case _:
            return lambda x: x


def write(folder: Path, out: Path) -> None:
    """Writes a GGUF file from an exported folder; memory holds about one tensor at a time.

    Matrices keep their precision; all else is fp32, as llama.cpp wants it.

    Raises:
        UserError: the file cannot hold the model, is there already, or cannot be written.
    """
    config = qwen3_5.from_json(folder)
    engines.check_gguf(config)
    with new_file(out) as draft:
        _write(folder, config, draft, out.stem)


def write_run(run: Path, out: Path, precision: str = "fp32") -> int:
    """Writes a GGUF file from a run's newest checkpoint, or from the checkpoint `run`, through a
    temporary Hugging Face folder. Returns the checkpoint's step.
    """
    checkpoint, config = open_checkpoint(run)
    engines.check_gguf(config)
    with new_file(out) as draft, draft_of(draft.with_suffix(".hf")) as folder:
        folder.mkdir()
        export.write(checkpoint, config, folder, precision)
        _write(folder, qwen3_5.from_json(folder), draft, out.stem)
    return checkpoint.step


def _write(folder: Path, config: Config, file: Path, name: str) -> None:
    """name: of the model, as llama.cpp and tools built on it show it."""
    said = vocabulary(Path(config.data.tokenizer)).padded(config.model.vocab_size)
    wanted = list(targets(config.model))
    with TensorFolder(folder) as tensors:
        embedding = wanted[0].source
        matrices = tensors.get(embedding.name, embedding.shape).dtype
        if matrices not in KINDS:
            raise UserError(f"{folder}: is {matrices}, which GGUF cannot hold; export it again")
        dtypes = [matrices if target.is_matrix else torch.float32 for target in wanted]
        writer = gguf.GGUFWriter(file, ARCHITECTURE)
        writer.add_name(name)
        _describe(writer, config, said, matrices)
        for target, dtype in zip(wanted, dtypes, strict=True):
            nbytes, kind = prod(target.shape) * dtype.itemsize, KINDS[dtype]
            writer.add_tensor_info(target.name, target.shape, np.dtype("f4"), nbytes, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for target, dtype in zip(wanted, dtypes, strict=True):
            value = target.convert(tensors.get(target.source.name, target.source.shape))
            assert tuple(value.shape) == target.shape, target
            value = value.to(dtype).contiguous()
            writer.write_tensor_data(value.view(-1).view(torch.uint8).numpy())
            del value  # before the next is made
        writer.close()


def _describe(
    writer: gguf.GGUFWriter, config: Config, said: Vocabulary, matrices: torch.dtype
) -> None:
    """Writes the file's metadata. llama.cpp refuses a file without most of these keys, but silently
    misreads it without others: rope's count and sections, the tokenizer's scores and flags.
    """
    model, head = config.model, config.model.attention_head_dim
    writer.add_file_type(FILE_TYPES[matrices])
    writer.add_vocab_size(model.vocab_size)
    writer.add_context_length(config.sleep.window)
    writer.add_embedding_length(model.d_model)
    writer.add_block_count(len(model.layers))
    writer.add_feed_forward_length(model.mlp_width)
    writer.add_layer_norm_rms_eps(model.norm_eps)
    writer.add_head_count(model.attention_heads)
    writer.add_head_count_kv(model.attention_kv_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(model.rotary_dim)
    writer.add_rope_dimension_sections([*qwen3_5.rotary_sections(config), 0])
    writer.add_rope_freq_base(model.rope_theta)
    writer.add_ssm_conv_kernel(model.delta_conv_width)
    writer.add_ssm_state_size(model.delta_key_dim)
    writer.add_ssm_group_count(model.delta_key_heads)
    writer.add_ssm_time_step_rank(model.delta_value_heads)
    writer.add_ssm_inner_size(model.delta_values)
    recurrent = [kind == "delta" for kind in model.layers]
    writer.add_array(f"{ARCHITECTURE}.attention.recurrent_layers", recurrent)
    if every := engines.interval(model.layers):
        writer.add_full_attention_interval(every)
    _describe_tokenizer(writer, said)


def _describe_tokenizer(writer: gguf.GGUFWriter, said: Vocabulary) -> None:
    """Writes the tokenizer: its pieces, with no BOS or space prefix."""
    writer.add_tokenizer_model(said.model)
    writer.add_tokenizer_pre(said.pre)
    writer.add_token_list(said.tokens)
    writer.add_token_types(said.types)
    if said.scores is not None:
        writer.add_token_scores(said.scores)
    if said.merges is not None:
        writer.add_token_merges(said.merges)
    writer.add_eos_token_id(said.eos)
    writer.add_pad_token_id(said.pad)
    if said.unk is not None:
        writer.add_unk_token_id(said.unk)
    if said.chat:
        writer.add_chat_template(said.chat)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_remove_extra_whitespaces(False)
