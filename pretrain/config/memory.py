"""What a run needs of a rank's memory at the very least, so that a slip in a size is told and not
tried.
"""

from __future__ import annotations

import psutil
import torch

from parallel import mesh
from pretrain.config.schema import Config
from pretrain.errors import UserError
from pretrain.model.flops import parameters

FP32 = 4  # bytes


def check_memory(config: Config) -> None:
    """UserError if a rank's share of the model is more than its device holds, whatever else there
    is beside it.
    """
    needed, device = least_bytes(config), mesh.device()
    held = (
        torch.cuda.get_device_properties(device).total_memory
        if device.type == "cuda"
        else psutil.virtual_memory().total
    )
    if needed > held:
        raise UserError(
            f"the model needs {needed / 2**30:,.0f} GiB on each rank before it has read a token, and there are "
            f"{held / 2**30:,.0f}: lower the sizes in [model], or raise parallel.tp, parallel.pp or train.microbatches"
        )


def least_bytes(config: Config) -> int:
    """Weights, the fast weights S [B, H, K, V] of a microbatch, and one hidden layer of one of its
    windows.
    """
    model, parallel = config.model, config.parallel
    rows = config.train.batch // (mesh.dp_size() * config.train.microbatches)
    sizes = parameters(model)
    sizes += (
        model.layers.count("delta")
        * rows
        * model.delta_value_heads
        * model.delta_key_dim
        * model.delta_value_dim
    )
    share = sizes * FP32 // (parallel.tp * parallel.pp)
    if parallel.zero == 3:
        share //= mesh.dp_size()
    return share + rows * config.sleep.window * model.d_model * FP32


def out_of_memory(error: Exception) -> bool:
    """Whether it says that the device or the host has no memory left."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(
        error
    )
