"""The grid of ranks: tensor x data x pipeline parallel, kept by Megatron's `parallel_state`.

A single process needs no launcher: it becomes a world of one, so that every run,
test and tool goes through the same Megatron layers.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.model_parallel_config import ModelParallelConfig


def device() -> torch.device:
    """This rank's device: its own GPU when there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def initialize(tp: int = 1, pp: int = 1) -> None:
    """Joins the world that the launcher describes (or a world of one) and lays the grid over it.

    Args:
        tp: ranks that share each layer. pp: stages that the blocks are split over.
            The remaining factor of the world size is data parallel.
    """
    if parallel_state.model_parallel_is_initialized():
        return
    if device().type == "cuda":
        torch.cuda.set_device(device())
    backend = "nccl" if device().type == "cuda" else "gloo"
    if not dist.is_initialized():
        if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
            dist.init_process_group(backend)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel(tp, pp, create_gloo_process_groups=False)


def shutdown() -> None:
    """Leaves the grid and the world, so that the process ends without a warning."""
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


def tp_size() -> int:
    """Ranks that share each layer."""
    return parallel_state.get_tensor_model_parallel_world_size()


def tp_group() -> dist.ProcessGroup:
    """The ranks that share each layer with this one."""
    return parallel_state.get_tensor_model_parallel_group()


def tp_rank() -> int:
    """This rank's share of each layer."""
    return parallel_state.get_tensor_model_parallel_rank()


def dp_rank() -> int:
    """This rank's place among those that hold the same weights."""
    return parallel_state.get_data_parallel_rank()


def dp_size() -> int:
    """Ranks that hold the same weights and read different rows."""
    return parallel_state.get_data_parallel_world_size()


def megatron_config() -> ModelParallelConfig:
    """What Megatron's layers need to know of the grid."""
    return ModelParallelConfig(
        tensor_model_parallel_size=tp_size(),
        pipeline_model_parallel_size=parallel_state.get_pipeline_model_parallel_world_size(),
        use_cpu_initialization=True,
        perform_initialization=False,
        gradient_accumulation_fusion=False,
    )
