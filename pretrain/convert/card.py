"""The model card of an export: README.md, as the Hub shows it, with the run's results."""

from __future__ import annotations

import shlex
from pathlib import Path

from pretrain.checkpoint import Checkpoint
from pretrain.config.checks import uses_tokenizer
from pretrain.config.schema import Config, SleepConfig
from pretrain.logged import read_metrics
from pretrain.model.flops import parameters
from pretrain.tables import table

CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [hypnos, sleep, qwen3_5]
---

# {name}

A language model that sleeps, pretrained with Hypnos: {blocks} blocks ({attention} of attention,
{delta} of the gated delta rule), {parameters:,} parameters. It was trained to read windows of
{window} tokens, to make {passes} over a full one{loop}, and then {eviction}.

{data}

{figures}

## Use

Awake and within one window this folder is an ordinary Qwen3.5 hybrid:

{use}

Other engines neither sleep nor evict: beyond {window} tokens they do what the model was not trained
for.{sleeping}
"""
OF_TEXT = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```"""
OF_A_TASK = """\
```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{name}")
```"""
SLEEPING = """ To generate with sleep, from a text of any length:

```sh
hypnos generate {quoted} {context}--prompt "..."
```"""


def text(checkpoint: Checkpoint, config: Config, name: str) -> str:
    """The whole card.

    Args:
        name: of the export's folder.
    """
    layers, sleep = config.model.layers, config.sleep
    has_text = uses_tokenizer(config)
    return CARD.format(
        name=name,
        blocks=len(layers),
        attention=layers.count("attention"),
        delta=layers.count("delta"),
        parameters=parameters(config.model),
        window=sleep.window,
        passes=f"N = {sleep.passes} pass{'es' if sleep.passes > 1 else ''}",
        loop=_loop(sleep, len(layers)),
        eviction=_eviction(sleep),
        data=_data(checkpoint, config),
        use=(OF_TEXT if has_text else OF_A_TASK).format(name=name),
        sleeping=_sleeping(config, name) if has_text else "",
        figures=_figures(checkpoint.run / "metrics.jsonl", checkpoint.step),
    )


def _sleeping(config: Config, name: str) -> str:
    context = "" if config.data.task == "text" else "--context-file FILE "  # a task's is slept over
    return SLEEPING.format(quoted=shlex.quote(name), context=context)


def _loop(sleep: SleepConfig, blocks: int) -> str:
    """Which blocks are looped, if not all are."""
    if not sleep.prelude and not sleep.coda:
        return ""
    return f" with blocks {sleep.prelude} to {blocks - sleep.coda - 1}, counted from 0"


def _eviction(sleep: SleepConfig) -> str:
    """What happens to a window's keys and values."""
    match sleep.eviction:
        case "hard":
            return "to forget its keys and values (hard eviction)"
        case "sliding":
            kept = f"the keys and values of the last {sleep.window - 1} tokens"
            return f"to keep only {kept} (sliding eviction)"
        case "none":
            return "to keep its keys and values (no eviction)"


def _data(checkpoint: Checkpoint, config: Config) -> str:
    read = f"{checkpoint.state['tokens']:,} tokens in {checkpoint.step:,} steps"
    if uses_tokenizer(config):
        return f"It has read {read} ({config.data.task}); its tokenizer is in this folder."
    return f"It has read {read} of the task {config.data.task}, which has no tokenizer."


def _figures(metrics: Path, step: int) -> str:
    """The last evaluation up to a step, one row for each N."""
    rows = list(read_metrics(metrics)) if metrics.exists() else []
    seen = [row for row in rows if row["kind"] == "eval" and row["step"] <= step]
    last = {row["passes"]: row for row in seen if row["step"] == seen[-1]["step"]}
    if not last:
        return "It has not been evaluated."
    names = list(next(iter(last.values())).get("accuracy", {}))
    cells = [
        [str(n), f"{row['loss']:.4f}", *(f"{100 * row['accuracy'][name]:.1f} %" for name in names)]
        for n, row in sorted(last.items())
    ]
    heads = ["N", "held-out loss (nats per token)", *(f"accuracy {name}" for name in names)]
    return f"Held-out data, after step {seen[-1]['step']:,}:\n\n{table(heads, cells)}"
