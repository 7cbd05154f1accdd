"""The argument that ends a sleep early, shared by `generate` and `serve`."""

from __future__ import annotations

from launch.commands import argument
from launch.commands.values import share

SLEEP_UNTIL = argument(
    "--sleep-until",
    dest="until",
    type=share,
    metavar="SHARE",
    default=0.0,
    help="a sleep ends before its N-th pass when one has changed the fast weights by less than "
    "this share of them, as 0.1 (default: N passes are made)",
)
