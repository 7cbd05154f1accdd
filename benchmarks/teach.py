"""Teaches a pretrained transformer to sleep, and evaluates it before and after each phase.

    python -m benchmarks.teach FOLDER [--passes 1 2 4]

A Llama in transformers is trained on Depo (configs/depo-small.toml) with all edges in context, by a
plain loop with torch's own optimisers. It is imported with inserted delta-rule blocks, and taught
by configs/teach-1.toml and configs/teach-2.toml with each N. What is already in FOLDER is not
repeated.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from launch.cli import main as hypnos
from pretrain.config.load import load
from pretrain.config.schema import Config
from pretrain.data.batch import IGNORE
from pretrain.evaluate import evaluate_run
from pretrain.tables import table
from pretrain.tasks import make_task

CONFIGS = Path(__file__).parents[1] / "configs"
STEPS, BATCH, LR = 6000, 32, 3e-3
# The task in place of configs/teach-*.toml's text.
TASK = [
    "data.task=depo", "data.train=[]", "data.heldout=", "depo.nodes=8", "depo.vocabulary=8",
    "depo.max_hops=4", "depo.context=16", "depo.queries=8", "depo.name_tokens=[1, 1]",
    "sleep.when=context", "sleep.window=16",
]  # fmt: skip
BLOCKS = [
    "model.delta_key_heads=4", "model.delta_value_heads=4", "model.delta_key_dim=16",
    "model.delta_value_dim=32", "model.decay_init=[1e-4, 1e-3]", "model.init_std=0.05",
]  # fmt: skip


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(
        description="Teaches a small pretrained Llama to sleep.",
        epilog="example: python -m benchmarks.teach runs/teach",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where all runs are kept")
    parser.add_argument("--passes", type=int, nargs="+", default=[1, 2, 4], metavar="N")
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder: Path = given.folder
    imported = folder / "imported"
    if not (folder / "llama").exists():
        pretrain(load(CONFIGS / "depo-small.toml"), folder / "llama")
    if not imported.exists():
        run("import", folder / "llama", imported, "--delta-every", "2", *BLOCKS, *TASK)
    (awake,) = evaluate_run(imported, [1], ["sleep.eviction=none"])
    rows = [row("pretrained, whole context visible", awake)]
    rows += [row(f"imported, hard eviction, N = {n}", evaluate_run(imported, [n])[0]) for n in
             given.passes]  # fmt: skip
    for n in given.passes:
        start = imported
        for phase in ("teach-1", "teach-2"):
            taught = folder / f"{phase}-n{n}"
            place = [f"run.dir={folder}", f"run.name={taught.name}", f"run.init_from={start}"]
            run("train", CONFIGS / f"{phase}.toml", *place, f"sleep.passes={n}", *TASK)
            rows.append(row(f"after {phase}, N = {n}", evaluate_run(taught, [n])[0]))
            start = taught
    print("\n" + table(["", "nats per answer", "k = 1", "k = 2", "k = 4"], rows))


def run(*arguments: str | Path) -> None:
    """Runs one command, as a user would type it."""
    print("hypnos", *arguments, flush=True)
    if status := hypnos([str(each) for each in arguments]):
        sys.exit(status)


def row(name: str, found: dict[str, Any]) -> Sequence[str]:
    right = (f"{100 * found['accuracy'][f'hops_{k}']:.1f} %" for k in (1, 2, 4))
    return [name, f"{found['loss']:.3f}", *right]


def pretrain(config: Config, folder: Path) -> None:
    """Trains a Llama that sees edges and queries at once, and saves it as transformers does."""
    task: Any = make_task(config, config.sleep.window)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=task.vocab_size, hidden_size=64, intermediate_size=128,
            num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
            max_position_embeddings=64, tie_word_embeddings=False, initializer_range=0.05,
        )
    )  # fmt: skip
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and ".layers." in n]
    others = [p for n, p in model.named_parameters() if p.dim() != 2 or ".layers." not in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=LR, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=LR, betas=(0.9, 0.95)),
    ]
    for step in range(STEPS):
        factor = min(1.0, (step + 1) / 50, (STEPS - step) / 300)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = LR * factor
            optimizer.zero_grad()
        batch = task.sample(0, step * BATCH, BATCH)
        logits = model(batch.tokens).logits
        loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        if step % 100 == 99:
            print(f"llama, step {step + 1}: {loss.item():.3f}", flush=True)
    model.save_pretrained(folder)


if __name__ == "__main__":
    main()
