"""Runs without training: a checkpoint of random weights, sharded as several ranks would save it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from torch import Tensor

from parallel.slices import Piece, Slice
from pretrain.checkpoint import folder
from pretrain.checkpoint.write import Part, write_common, write_part
from pretrain.config.load import from_tables, validated
from pretrain.config.run_folder import FOREIGN_TOKENIZER, TOKENIZER
from pretrain.config.schema import Config, SleepConfig
from pretrain.model.sleep import SleepLM
from tests.checkpoint.written import STATE
from tests.model import tiny
from tokenizer import foreign
from tokenizer.encode import Tokenizer

SLEEP = SleepConfig(passes=3, window=16)
# Keys and values have the same width, as llama.cpp requires.
SHAPE = {
    "d_model": 32, "attention_heads": 4, "attention_kv_heads": 2, "attention_head_dim": 8,
    "rotary_fraction": 0.75, "delta_key_heads": 2, "delta_value_heads": 4, "delta_key_dim": 8,
    "delta_value_dim": 8, "delta_chunk": 8, "mlp_width": 48,
}  # fmt: skip
DDDA = ["delta", "delta", "delta", "attention"]
ADAD = ["attention", "delta", "attention", "delta"]


def config(tokenizer: Path, sleep: SleepConfig = SLEEP, **shape: object) -> Config:
    """The configuration of a text run."""
    known = {"vocab_size": Tokenizer.load(tokenizer).vocab_size, "layers": DDDA}
    tables = {
        "model": SHAPE | known | shape,
        "data": {"tokenizer": str(tokenizer), "train": [{"path": "x"}], "heldout": "x"},
    }
    made = from_tables(tables, "test")
    made.sleep = sleep
    return validated(made)


def build(config: Config, sleep: SleepConfig | None = None) -> SleepLM:
    """Everything is random, norms, decays and convolutions too: identities would hide mistakes."""
    model = tiny.build(sleep or config.sleep, config.model, torch.float32)
    if config.model.tie_embeddings:  # or the head would rule out all tokens but one
        model.embed.weight.data *= config.model.d_model**-0.5
    return model


def weights(config: Config) -> dict[str, Tensor]:
    """That model's weights, by name."""
    return {name: p.detach() for name, p in build(config).named_parameters()}


def write_run(run: Path, config: Config, step: int = 7, ranks: int = 3) -> Path:
    """A run's folder with one checkpoint, whose tensors are sharded as by ZeRO."""
    folder.make_draft(run, step)
    draft = folder.draft_dir(run, step)
    named, parts = weights(config), list[Part]()
    for rank in range(ranks):
        pieces = {name: _piece(value, rank, ranks) for name, value in named.items()}
        parts.append(write_part(draft, rank, {"model": pieces}))
    write_common(draft, step, parts, STATE, config)
    folder.publish(run, step, keep=5, keep_every=0)
    if config.data.task == "text":
        if foreign.is_foreign(Path(config.data.tokenizer)):
            foreign.hold(Path(config.data.tokenizer), run / FOREIGN_TOKENIZER)
        else:
            shutil.copyfile(config.data.tokenizer, run / TOKENIZER)
    row = {"kind": "eval", "step": step, "passes": config.sleep.passes, "loss": 5.4321}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    return run


def _piece(value: Tensor, rank: int, ranks: int) -> Piece:
    begin, end = (value.numel() * k // ranks for k in (rank, rank + 1))
    where = Slice.share(tuple(value.shape), {}, (begin, end))
    return Piece(where, value.flatten()[begin:end].clone())
