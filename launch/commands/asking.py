"""Arguments that `generate`, `serve` and `eval` share: how a trained model is used."""

from __future__ import annotations

from launch.commands import argument
from launch.commands.values import json_object, path, share

SLEEP_UNTIL = argument(
    "--sleep-until",
    dest="until",
    type=share,
    metavar="SHARE",
    default=0.0,
    help="a sleep ends before its N-th pass when one has changed the fast weights by less than "
    "this share of them, as 0.1 (default: N passes are made)",
)
PRECISION = argument(
    "--precision",
    choices=["fp32", "bf16"],
    default="fp32",
    help="of weights and activations, whatever was trained; bf16 takes half the memory",
)
CHAT_TEMPLATE = argument(
    "--chat-template",
    type=path,
    metavar="FILE",
    help="how conversations are written: in Jinja, as transformers' chat templates; plain: as "
    "`User: ...`, `Assistant: ...` (default: by the template that the tokenizer came with, or "
    "plain)",
)
CHAT_TEMPLATE_KWARGS = argument(
    "--chat-template-kwargs",
    type=json_object,
    metavar="JSON",
    help="variables of the chat template, as '{\"enable_thinking\": false}' of Qwen3's",
)
