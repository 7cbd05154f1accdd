"""The table of layouts that are refused: checked before anything is built, printed in the docs.

python -m parallel.combinations     # the table in Markdown
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

# Elements of blocks that ZeRO 3 keeps gathered at a time, including the block about to run; like
# DeepSpeed's `stage3_max_live_parameters`.
MAX_WHOLE = 1_000_000_000
MAX_BUCKET = 500_000_000  # elements of gradients that DeepSpeed reduces at once
# Logits of a rank that exist at once: few beside a unit's activations, yet so many that it costs
# little to add up the gradients of the head's weights part by part.
MAX_LOGITS = 2**27


@dataclass(frozen=True)
class Layout:
    """How a step is spread over ranks, and the settings that interact with it."""

    tp: int = 1
    pp: int = 1
    sequence_parallel: bool = False
    zero: int = 1
    offload: bool = False
    precision: str = "fp32"
    microbatches: int = 1
    recompute: str = "unit"
    cuda_graphs: bool = False
    cp: int = 1
    cp_delta: str = "heads"


class Refusal(NamedTuple):
    """A combination that is refused."""

    refused: str
    why: str
    fix: str
    applies: Callable[[Layout], bool]


REFUSALS = (
    Refusal(
        "parallel.pp > 1 with parallel.zero = 0",
        "a stage's many small backwards need one reduction at their end, "
        "which DeepSpeed has from ZeRO 1 on",
        "set parallel.zero = 1",
        lambda x: x.pp > 1 and x.zero == 0,
    ),
    Refusal(
        "parallel.pp > 1 with parallel.zero = 2 or 3",
        "they shard gradients and weights while later units of the pipeline "
        "still add to them and read them",
        "set parallel.zero = 1",
        lambda x: x.pp > 1 and x.zero >= 2,
    ),
    Refusal(
        "parallel.zero = 0 with train.precision = bf16 and train.microbatches > 1",
        "without ZeRO DeepSpeed adds microbatches up in bf16",
        "set parallel.zero = 1, which adds them up in fp32",
        lambda x: x.zero == 0 and x.precision == "bf16" and x.microbatches > 1,
    ),
    Refusal(
        "parallel.offload with parallel.zero = 0",
        "what is offloaded is the optimiser state that ZeRO shards",
        "set parallel.zero = 1, 2 or 3",
        lambda x: x.offload and x.zero == 0,
    ),
    Refusal(
        "parallel.offload with parallel.pp > 1 and train.precision = bf16",
        "DeepSpeed's offloading optimiser would add a pipeline's units up in bf16",
        "leave parallel.offload out: stages hold less optimiser state already",
        lambda x: x.offload and x.pp > 1 and x.precision == "bf16",
    ),
    Refusal(
        "parallel.sequence_parallel with parallel.tp = 1",
        "there are no tensor-parallel ranks to share the tokens",
        "leave it out, or set parallel.tp",
        lambda x: x.sequence_parallel and x.tp == 1,
    ),
    Refusal(
        "parallel.cp_delta = tokens with parallel.cp = 1",
        "there are no context-parallel ranks to share the tokens",
        "leave it out, or set parallel.cp",
        lambda x: x.cp_delta == "tokens" and x.cp == 1,
    ),
    Refusal(
        "parallel.cuda_graphs with parallel.recompute = none or block",
        "a graph serves every window and pass only if nothing of it is kept for backward",
        "set parallel.recompute = unit",
        lambda x: x.cuda_graphs and x.recompute != "unit",
    ),
    Refusal(
        "parallel.cuda_graphs with parallel.tp, parallel.cp or parallel.pp > 1, "
        "or parallel.zero = 3",
        "their units wait for other ranks, or for weights that come and go",
        "leave parallel.cuda_graphs out: models of such layouts keep their GPUs busy",
        lambda x: x.cuda_graphs and (x.tp * x.cp * x.pp > 1 or x.zero == 3),
    ),
)


def refusal(layout: Layout) -> str | None:
    """Why a layout is refused and what to change, in one line; None if it is allowed."""
    for rule in REFUSALS:
        if rule.applies(layout):
            return f"{rule.refused}: {rule.why}; {rule.fix}"
    return None


def table() -> str:
    """The rules in Markdown."""
    rows = "".join(f"| {rule.refused} | {rule.why} | {rule.fix} |\n" for rule in REFUSALS)
    return "| refused | why | instead |\n|---|---|---|\n" + rows


if __name__ == "__main__":
    print(table(), end="")
