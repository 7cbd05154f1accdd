"""Arguments shared by `generate`, `serve` and `eval`: how a trained model is used."""

from __future__ import annotations

from launch.commands import argument
from launch.commands.values import json_object, path, share

FOLDER = argument(
    "folder", metavar="RUN", type=path, help="a run's folder, a checkpoint or an export"
)
SLEEP_UNTIL = argument(
    "--sleep-until",
    dest="until",
    type=share,
    metavar="SHARE",
    default=0.0,
    help="end a sleep before its N-th pass once a pass changes the fast weights by less than this "
    "share of their norm, for example 0.1 (default: always N passes)",
)
PRECISION = argument(
    "--precision",
    choices=["fp32", "bf16"],
    default="fp32",
    help="precision of weights and activations, whichever was trained; bf16 takes half the memory",
)
CHAT_TEMPLATE = argument(
    "--chat-template",
    type=path,
    metavar="FILE",
    help="how conversations are written: a file with a Jinja chat template, as in transformers; "
    "plain: as `User: ...`, `Assistant: ...` (default: the tokenizer's own template, or plain)",
)
CHAT_TEMPLATE_KWARGS = argument(
    "--chat-template-kwargs",
    type=json_object,
    metavar="JSON",
    help="variables of the chat template, for example '{\"enable_thinking\": false}' for Qwen3",
)
