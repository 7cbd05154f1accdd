"""The variants of flash-linear-attention's kernels, of which it takes what is fastest here."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from triton import Config


def keep_variants(choose: Callable[[Sequence[Config]], Sequence[Config]]) -> None:
    """Leaves each of its kernels only some variants, at least one."""
    import fla.modules.causal_conv1d
    import fla.ops.gated_delta_rule  # noqa: F401
    from triton.runtime.autotuner import Autotuner

    for tuner in gc.get_objects():
        if issubclass(type(tuner), Autotuner) and len(tuner.configs) > 1:
            tuner.configs = list(choose(tuner.configs)) or tuner.configs[:1]


def keep_one_variant() -> None:
    """The usual one of each kernel: nothing is tuned."""
    keep_variants(lambda all: [c for c in all if c.num_warps == 4 and c.num_stages in (2, 3)][:1])
