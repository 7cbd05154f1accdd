"""Measures the memory that export and import of a model take (docs/formats.md).

    python -m benchmarks.convert [--d-model 1024]

Each conversion has a process of its own, which imports what it needs before the measurement.
Only anonymous memory counts, not mapped files, which the kernel can evict. Prints a table.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.command import described
from benchmarks.rise import rise
from pretrain.config.load import from_tables, validated
from pretrain.config.schema import Config
from pretrain.convert import gguf, qwen3_5
from pretrain.convert.export import export
from pretrain.convert.folder import Spec, write_json, write_shards
from pretrain.convert.into_run import import_folder
from pretrain.convert.names import packed_tensors
from pretrain.origin import origin
from pretrain.tables import table
from tokenizer.train import train

MIB = 1 << 20


def anonymous() -> int:
    """Bytes of this process that are in memory and not backed by a file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no RssAnon: this is not Linux")


def model(d_model: int, tokenizer: Path) -> Config:
    """Eight blocks, and an embedding of 32,768 rows."""
    heads = d_model // 64
    tables = {
        "model": {
            "vocab_size": 1 << 15, "d_model": d_model, "mlp_width": 4 * d_model,
            "layers": (["delta"] * 3 + ["attention"]) * 2, "attention_heads": heads,
            "attention_kv_heads": max(1, heads // 4), "attention_head_dim": 64,
            "rotary_fraction": 0.25,
            "delta_key_heads": max(1, heads // 2), "delta_value_heads": heads, "delta_key_dim": 64,
            "delta_value_dim": 64, "tie_embeddings": True,
        },
        "data": {"tokenizer": str(tokenizer), "train": [{"path": "x"}], "heldout": "x"},
    }  # fmt: skip
    return validated(from_tables(tables, "benchmarks/convert.py"))


def make(folder: Path, config: Config) -> None:
    """An export of random weights."""

    def tensors() -> Iterator[Tensor]:
        for packed in packed_tensors(config.model):
            yield torch.randn(packed.shape) * 0.02

    specs = [Spec(packed.name, packed.shape) for packed in packed_tensors(config.model)]
    write_shards(folder, specs, tensors())
    write_json(folder / qwen3_5.CONFIG, qwen3_5.to_json(config, 0))


def main() -> None:
    """Measures, and prints a table."""
    parser = described(__doc__)
    parser.add_argument(
        "--d-model", type=int, default=1024, help="width of the model (%(default)s)"
    )
    config = partial(model, parser.parse_args().d_model)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        hf = place / "hf"
        hf.mkdir()
        texts = [path.read_text() for path in Path("docs").glob("*.md")]
        train(texts, hf / "tokenizer.model", vocab_size=2048)
        made = config(hf / "tokenizer.model")
        make(hf, made)
        run, half = place / "run", place / "half"
        ways: dict[str, Callable[[], object]] = {
            "`hypnos import` of fp32": partial(import_folder, hf, run),
            "`hypnos export --to hf`": partial(export, run, place / "again"),
            "... `--precision bf16`": partial(export, run, half, "bf16"),
            "`hypnos export --to gguf` of the folder": partial(gguf.write, hf, place / "x.gguf"),
            "... of a run": partial(gguf.write_run, run, place / "y.gguf"),
            "`hypnos import` of bf16": partial(import_folder, half, place / "run2"),
        }
        rows = []
        for way, call in ways.items():
            print(way, file=sys.stderr, flush=True)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                rows.append([way, f"{pool.apply(rise, [anonymous, call]) / MIB:.0f}"])
    sizes = [4 * torch.Size(packed.shape).numel() for packed in packed_tensors(made.model)]
    print(table(["MiB of anonymous memory", "at most"], rows))
    print(f"\na model of {sum(sizes) / MIB:,.0f} MiB in fp32, whose largest tensor has "
          f"{max(sizes) / MIB:.0f}; " + ", ".join(origin().values()))  # fmt: skip


if __name__ == "__main__":
    main()
