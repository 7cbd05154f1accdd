"""Checks that a run can fit in a rank's memory at all, and advises what to change if it did not."""

from __future__ import annotations

import shlex
from pathlib import Path

import psutil
import torch

from parallel import mesh
from pretrain.config.checks import check_ranks
from pretrain.config.load import override
from pretrain.config.schema import Config
from pretrain.errors import UserError
from pretrain.model.flops import parameters

FP32 = 4  # bytes


def check_memory(config: Config) -> None:
    """UserError if a rank's device cannot even hold its share of the model (`least_bytes`)."""
    needed, device = least_bytes(config), mesh.device()
    held = (
        torch.cuda.get_device_properties(device).total_memory
        if device.type == "cuda"
        else psutil.virtual_memory().total
    )
    if needed > held:
        what = f"the model needs {needed / 2**30:,.0f} GiB on each rank before it reads a token"
        more = "parallel.tp, parallel.cp, parallel.pp or train.microbatches"
        fix = f"lower the sizes in [model], or raise {more}"
        raise UserError(f"{what}, but there are only {held / 2**30:,.0f}: {fix}")


def least_bytes(config: Config) -> int:
    """A lower bound of a rank's memory: its weights, and a microbatch's fast weights S and one
    hidden layer of a window.
    """
    model, parallel = config.model, config.parallel
    rows = config.train.batch // (mesh.dp_size() * config.train.microbatches)
    fast = rows * model.delta_value_heads * model.delta_key_dim * model.delta_value_dim  # B H K V
    weights = parameters(model) // (parallel.tp * parallel.pp)
    if parallel.zero == 3:
        weights //= mesh.dp_cp_size()
    fast = model.layers.count("delta") * fast // (parallel.tp * parallel.pp)
    hidden = rows * config.sleep.window * model.d_model
    return FP32 * (weights + (fast + hidden) // parallel.cp)


def out_of_memory(error: Exception) -> bool:
    """Whether an error means that the device or the host is out of memory."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    # torch's message for the host; and that of CUDA itself or NCCL, when torch is not the caller
    words = ("DefaultCPUAllocator", "out of memory")
    return isinstance(error, kinds) or any(each in str(error) for each in words)


def make_room(path: Path, config: Config, ranks: int) -> str:
    """Advice after out-of-memory: allowed changes, cheapest first.

    Args:
        path: the configuration's.
    """
    parallel, train, gpu = config.parallel, config.train, mesh.device().type == "cuda"
    rows = train.batch // max(1, ranks // (parallel.tp * parallel.cp * parallel.pp))
    more = [n for n in range(train.microbatches + 1, rows + 1) if rows % n == 0]
    changes = [f"train.microbatches={n}" for n in more[:1]]
    changes += ["parallel.recompute=block"] if parallel.recompute != "block" else []
    changes += ["parallel.zero=2"] if parallel.zero < 2 and ranks > 1 else []
    changes += [f"parallel.tp={2 * parallel.tp}"]
    changes += ["parallel.offload=true"] if gpu and not parallel.offload else []
    allowed = ", ".join(change for change in changes if _is_allowed(config, change, ranks))
    lower = "lower train.batch or sleep.window"
    if not allowed:
        return lower
    plan = f"`hypnos plan {shlex.quote(str(path))} --gpus {ranks}` shows what is enough"
    return f"set one or more of {allowed}{f' ({plan})' if gpu else ''}, or {lower}"


def _is_allowed(config: Config, change: str, ranks: int) -> bool:
    try:
        check_ranks(override(config, [change]), ranks)
    except UserError:
        return False
    return True
