"""Preset autotuning results for flash-linear-attention's kernels: the fastest on one card.

fla has a dozen variants of each kernel and times them all at the first call with new head shapes:
minutes, in a stage of two. These are its results on an H200, for the heads of the 1B model (the
convolution's backward was not timed there, and uses its forward's); fla reads them from files,
through its own switches, FLA_CACHE_MODE and FLA_CONFIG_DIR. Kernels not listed here are timed as
usual. With presets, all processes also round alike.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple


class Variant(NamedTuple):
    """Warps and pipeline stages, and block sizes."""

    num_warps: int
    num_stages: int
    kwargs: dict[str, int]


FASTEST = {
    "causal_conv1d_fwd_kernel": Variant(4, 3, {"BD": 32}),
    "causal_conv1d_bwd_kernel": Variant(4, 3, {"BD": 32}),
    "chunk_local_cumsum_scalar_kernel": Variant(1, 3, {}),
    "chunk_gated_delta_rule_fwd_kkt_solve_kernel": Variant(1, 3, {"BK": 64}),
    "recompute_w_u_fwd_kernel": Variant(4, 3, {}),
    "chunk_gated_delta_rule_fwd_kernel_h_blockdim64": Variant(4, 3, {"BV": 64}),
    "chunk_fwd_kernel_o": Variant(4, 3, {"BK": 64, "BV": 64}),
    "chunk_bwd_kernel_dv_local": Variant(4, 3, {}),
    "chunk_gated_delta_rule_bwd_kernel_dhu_blockdim64": Variant(4, 2, {"BV": 32}),
    "prepare_wy_repr_bwd_kernel": Variant(4, 4, {}),
    "l2norm_fwd_kernel": Variant(2, 3, {"BT": 8}),
    "l2norm_bwd_kernel": Variant(4, 3, {"BT": 16}),
}


def use_fastest(folder: Path) -> None:
    """For this process and those it starts from now on, unless FLA_CACHE_MODE is set."""
    if "FLA_CACHE_MODE" in os.environ:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for kernel, variant in FASTEST.items():
        config = variant._asdict() | {"num_ctas": 1}
        (folder / f"{kernel}.json").write_text(json.dumps({"default_config": config}))
    os.environ |= {"FLA_CACHE_MODE": "default", "FLA_CONFIG_DIR": str(folder)}
