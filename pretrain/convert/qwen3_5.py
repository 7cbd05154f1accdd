"""Maps settings to and from the config.json of Qwen3.5's dense hybrid, and imports its weights.

Within one window, awake (N = 1), the two models are the same function. Settings of sleep have no
place in theirs; they are stored under a key of our own, "hypnos", which only our sessions read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from parallel.slices import all_finite
from pretrain.config.load import from_tables, validated
from pretrain.config.run_folder import own_tokenizer
from pretrain.config.schema import Config
from pretrain.convert import engines
from pretrain.convert.folder import UNQUANTIZED, TensorFolder, read_json
from pretrain.convert.names import packed_tensors
from pretrain.errors import UserError, shortened

Tables = dict[str, dict[str, Any]]  # of a configuration

CONFIG = "config.json"
NESTED = "model.language_model."  # prefix of the language model's tensors in a multimodal model
MODEL_TYPE = "qwen3_5_text"
KEY, VERSION = "hypnos", 1  # our key in config.json, and the version of its content
SLEEP = ("passes", "window", "when", "eviction", "prelude", "coda")  # what a session needs to know
# Settings that choose the held-out rows, and their sections; for a task also its own section.
EVALUATION = {"batch": "train", "eval_batches": "train", "windows": "data", "repeats": "data"}
KINDS = {"attention": "full_attention", "delta": "linear_attention"}
# theirs: ours
SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "d_model",
    "intermediate_size": "mlp_width",
    "num_attention_heads": "attention_heads",
    "num_key_value_heads": "attention_kv_heads",
    "head_dim": "attention_head_dim",
    "linear_num_key_heads": "delta_key_heads",
    "linear_num_value_heads": "delta_value_heads",
    "linear_key_head_dim": "delta_key_dim",
    "linear_value_head_dim": "delta_value_dim",
    "linear_conv_kernel_dim": "delta_conv_width",
    "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tie_embeddings",
}
FIXED = {"hidden_act": "silu", "attention_bias": False}  # fixed in our blocks
# An export does not contain its training data; users must name data where they are needed.
NOT_NAMED = "(not named)"
DATA = {"train": [{"path": NOT_NAMED}], "heldout": NOT_NAMED}


def to_json(config: Config, step: int) -> dict[str, Any]:
    """config.json of an export, without dtype and special ids.

    Args:
        step: of the run, when the weights were saved.
    """
    model, sleep = config.model, config.sleep
    every = engines.interval(model.layers)
    return {
        "architectures": ["Qwen3_5ForCausalLM"],
        "model_type": MODEL_TYPE,
        **{theirs: getattr(model, ours) for theirs, ours in SIZES.items()},
        **FIXED,
        "num_hidden_layers": len(model.layers),
        "layer_types": [KINDS[kind] for kind in model.layers],
        # mlx-lm does not know layer_types
        **({"full_attention_interval": every} if every else {}),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": model.rope_theta,
            "partial_rotary_factor": model.rotary_fraction,
            "mrope_section": rotary_sections(config),
            "mrope_interleaved": True,
        },
        # One window: beyond it no other engine does what the model was trained for.
        "max_position_embeddings": sleep.window,
        "use_cache": True,
        KEY: {"version": VERSION, "task": config.data.task, "step": step}
        | {name: getattr(sleep, name) for name in SLEEP}
        | {"evaluation": _evaluation(config)},
    }


def _evaluation(config: Config) -> dict[str, Any]:
    task = config.data.task
    said = {name: getattr(getattr(config, s), name) for name, s in EVALUATION.items()}
    if task == "text":
        return said
    settings = asdict(getattr(config, task))
    for name in ("path", "heldout"):  # on this machine
        if settings.get(name):
            settings[name] = NOT_NAMED
    return said | {task: settings}


def rotary_sections(config: Config) -> list[int]:
    """The numbers of rotary pairs in three sections: equal for text, but engines require them."""
    pairs = config.model.rotary_dim // 2
    return [(pairs + 2) // 3, (pairs + 1) // 3, pairs // 3]


def from_json(folder: Path) -> Config:
    """The configuration of an exported folder's model: sizes, sleep, and the tokenizer's path.

    Raises:
        UserError: it is not an export of ours, or cannot be read.
    """
    path = folder / CONFIG
    theirs = read_json(path)
    ours = theirs.get(KEY)
    if not isinstance(ours, dict):
        raise UserError(f"{path}: has no sleep settings; turn it into a run with `hypnos import`")
    if ours.get("version") != VERSION:
        written = shortened(str(ours.get("version")))
        raise UserError(f"{path}: {KEY} is of version {written}, and this Hypnos reads {VERSION}")
    check_unquantized(theirs, path)
    found = tables(theirs, path)
    found["data"] |= DATA | {"tokenizer": str(own_tokenizer(folder))}
    with TensorFolder(folder) as tensors:
        if has_own_head(found, tensors):
            found["model"]["tie_embeddings"] = False
    return validated(from_tables(found, str(path)))


def tables(theirs: dict[str, Any], path: Path) -> Tables:
    """The settings of a run that starts from a config.json's model: shape, sleep, and for an export
    of ours, how it was evaluated.

    A multimodal model's language model is under "text_config".
    """
    text = theirs
    if _is_nested(theirs):
        # the head belongs to the whole model, and so does the key by which transformers ties it
        tied = theirs.get("tie_word_embeddings", False)
        text = theirs["text_config"] | {"tie_word_embeddings": tied}
    model = model_table(text, path)
    ours = theirs.get(KEY)
    if isinstance(ours, dict):  # an export of ours
        sleep = {name: ours[name] for name in SLEEP if name in ours}
        return {"model": model, "sleep": sleep} | _judged_on(ours)
    return {"model": model, "sleep": middle_half(len(model["layers"]))}


def _judged_on(ours: dict[str, Any]) -> Tables:
    """The task of an export's run, and its evaluation rows; older exports lack the task's own
    section.
    """
    task, said = ours.get("task"), ours.get("evaluation")
    found: Tables = {"data": {"task": task}, "train": {}}
    if isinstance(said, dict):
        for name in EVALUATION.keys() & said.keys():
            found[EVALUATION[name]][name] = said[name]
        if isinstance(task, str) and task in said:
            found[task] = said[task]
    return found


def has_own_head(found: Tables, tensors: TensorFolder) -> bool:
    """Whether the config says that head and embedding are tied, but the folder has a different
    head: then that is used, as transformers does.
    """
    head, embedding = "lm_head.weight", f"{_prefix(tensors)}embed_tokens.weight"
    if not found["model"].get("tie_embeddings") or head not in tensors.names():
        return False
    return not tensors.are_equal(head, embedding)


def text_config(theirs: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of a config.json: all of it, or "text_config" if multimodal."""
    text: dict[str, Any] = theirs["text_config"] if _is_nested(theirs) else theirs
    return text


def _is_nested(theirs: dict[str, Any]) -> bool:
    return isinstance(theirs.get("text_config"), dict)


def middle_half(blocks: int) -> dict[str, Any]:
    """The paper's loop over a pretrained model: blocks 7 to 20 of 28."""
    return {"prelude": blocks // 4, "coda": blocks // 4}


def weights(tensors: TensorFolder, config: Config) -> Iterator[Tensor]:
    """Our parameters in the order of `packed_tensors`, in their dtype, read one by one."""
    prefix = _prefix(tensors)
    for packed in packed_tensors(config.model):
        name = packed.name.replace("model.", prefix, 1)
        whole = tensors.get(name, packed.shape)  # memory-mapped
        if not all_finite(whole):
            raise UserError(f"{tensors.folder}: tensor {name} is not finite")
        yield from packed.unpack(whole)


def left_out(tensors: TensorFolder, config: Config) -> list[str]:
    """A line about what a multimodal folder has beside the language model.

    Raises:
        UserError: the language model has tensors that ours does not.
    """
    prefix = _prefix(tensors)
    known = {packed.name.replace("model.", prefix, 1) for packed in packed_tensors(config.model)}
    known |= {"lm_head.weight"} if config.model.tie_embeddings else set()
    others = sorted(set(tensors.names()) - known)
    foreign = [name for name in others if name.startswith((prefix, "lm_head."))]
    if foreign:
        raise UserError(f"{tensors.folder}: unexpected tensor {shortened(foreign[0])}")
    return [f"{len(others)} tensors are left out, such as {others[0]}"] if others else []


def _prefix(tensors: TensorFolder) -> str:
    """The prefix of the language model's tensors."""
    is_nested = any(name.startswith(NESTED) for name in tensors.names())
    return NESTED if is_nested else "model."


def model_table(theirs: dict[str, Any], path: Path) -> dict[str, Any]:
    """The section [model] of a Qwen3.5 dense hybrid's config.json, unchecked.

    Raises:
        UserError: it is another architecture, or has something that our blocks do not.
    """
    if theirs.get("model_type") != MODEL_TYPE:
        kind = shortened(repr(theirs.get("model_type")))
        raise UserError(f"{path}: model_type = {kind} instead of {MODEL_TYPE!r}")
    for name, value in FIXED.items():
        if theirs.get(name, value) != value:
            raise UserError(f"{path}: {name} = {theirs[name]!r}; only {value!r} is supported")
    missing = [name for name in SIZES if name not in theirs and name != "tie_word_embeddings"]
    if missing:
        raise UserError(f"{path}: {missing[0]} is missing")
    sizes = {ours: theirs[name] for name, ours in SIZES.items() if name in theirs}
    return sizes | {"layers": _layers(theirs, path)} | _rope(theirs, path)


def _layers(theirs: dict[str, Any], path: Path) -> list[str]:
    kinds = {name: ours for ours, name in KINDS.items()}
    named = theirs.get("layer_types")
    if not isinstance(named, list) or not all(str(name) in kinds for name in named):
        known = " and ".join(kinds)
        raise UserError(f"{path}: layer_types must be a list of {known}")
    return [kinds[name] for name in named]


def _rope(theirs: dict[str, Any], path: Path) -> dict[str, Any]:
    rope = rope_parameters(theirs, path)
    if not {"rope_theta", "partial_rotary_factor"} <= rope.keys():
        raise UserError(f"{path}: rope_parameters lack rope_theta or partial_rotary_factor")
    return {
        "rope_theta": rope["rope_theta"],
        "rotary_fraction": rope["partial_rotary_factor"],
    }


def check_unquantized(theirs: dict[str, Any], path: Path) -> None:
    """UserError if a config.json, or the text_config in it, says that the weights are quantised."""
    for table in (theirs, text_config(theirs)):
        if table.get("quantization_config") is not None:
            raise UserError(f"{path}: has a quantization_config; {UNQUANTIZED}")


def rope_type(rope: dict[str, Any]) -> Any:
    """How wavelengths are scaled; this key has two names, too."""
    return rope.get("rope_type", rope.get("type", "default"))


def rope_parameters(
    theirs: dict[str, Any], path: Path, kinds: Sequence[str] = ("default",)
) -> dict[str, Any]:
    """How positions are rotated. It has two names, the second of which is the old one; transformers
    goes by that where both are there. UserError: wavelengths are scaled in another way than these.
    """
    found: dict[str, Any] = {}
    for name in ("rope_parameters", "rope_scaling"):
        rope = theirs.get(name) or {}
        if not isinstance(rope, dict):
            raise UserError(f"{path}: {name} is not a table")
        kind = rope_type(rope)
        if kind not in kinds:
            kind, held = shortened(repr(kind)), " and ".join(map(repr, kinds))
            raise UserError(f"{path}: {name} has rope_type = {kind}; only {held} can be imported")
        if nested := [key for key, value in rope.items() if isinstance(value, dict)]:
            raise UserError(f"{path}: {name} has a separate table for {shortened(nested[0])}")
        found = rope or found
    return found
