"""The process grid: tensor x context x data x pipeline parallel, by Megatron's `parallel_state`.

rank = tp + tp_size * (cp + cp_size * (dp + dp_size * pp)): the ranks that split layers (tp) are
consecutive, then those that split the tokens of the same rows (cp), then those that read other rows
(dp), then the pipeline stages (pp). So the ranks that talk most, those of one layer, share a host.

A single process needs no launcher: it becomes a world of one, so that every run, test and tool uses
the same Megatron layers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.megatron import ModelParallelConfig, mappings, parallel_state

# seconds that a rank waits for another before it gives up the job, unless set otherwise
TIMEOUT = 600.0
# from this many ranks on, gloo connects two ranks when they first talk, not all pairs at the start
LAZY_FROM = 65

_sequence_parallel = False  # kept here because Megatron's grid has no place for it
_cp_size = 1  # cached: every mixer asks for it, and Megatron's getter is slow
_delta_by_tokens = False


def device() -> torch.device:
    """This rank's device: its own GPU when there is one, else the CPU."""
    if torch.cuda.is_available():
        index = int(os.environ.get("LOCAL_RANK", 0)) if world_size() > 1 else 0
        return torch.device("cuda", index)
    return torch.device("cpu")


def world_size() -> int:
    """How many ranks the launcher started; known before they have joined."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", 1))


def is_first_on_host() -> bool:
    """Whether this rank does what is done once per host (local rank 0)."""
    return world_size() == 1 or int(os.environ.get("LOCAL_RANK", 0)) == 0


def join(timeout: float = TIMEOUT, *, alone: bool = False, store: dist.Store | None = None) -> None:
    """Initialises torch.distributed as the launcher's environment says, or as a world of one; makes
    no grid yet.

    Args:
        timeout: seconds; collectives time out after twice this.
        alone: see `initialize`.
        store: the rendezvous store, if the ranks have one already.
    """
    if dist.is_initialized():
        return
    # Host tensors use gloo even where there are GPUs: agreeing on something must not wait for the
    # device.
    backend = "cpu:gloo,cuda:nccl" if device().type == "cuda" else "gloo"
    if alone or "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    else:
        rank = int(os.environ["RANK"]) if store is not None else -1  # -1: from the environment
        world = world_size() if store is not None else -1
        limit = timedelta(seconds=2 * timeout)
        if world_size() >= LAZY_FROM:
            os.environ.setdefault("TORCH_GLOO_LAZY_INIT", "1")
        dist.init_process_group(backend, timeout=limit, store=store, rank=rank, world_size=world)
    if device().type == "cuda":
        torch.cuda.set_device(device())  # only now: device() depends on the world's size


def initialize(
    tp: int = 1,
    pp: int = 1,
    sequence_parallel: bool = False,
    timeout: float = TIMEOUT,
    *,
    cp: int = 1,
    delta_by_tokens: bool = False,
    alone: bool = False,
) -> None:
    """Joins the launcher's world (or a world of one) and builds the grid.

    Args:
        tp: ranks that split each layer. pp: stages that the blocks are split over.
            cp: ranks that split the tokens of each window.
            The remaining factor of the world size is data parallel.
        sequence_parallel: between layers, each tp rank holds only its share of the tokens.
        delta_by_tokens: cp ranks split the delta rule by tokens rather than by heads.
        timeout: seconds after which ranks that make no progress end, see `parallel.watchdog`.
            Collectives time out after twice this.
        alone: a world of one, whatever the launcher's variables say: an evaluation inside a job.
    Raises:
        ValueError: the world size is not divisible by tp x cp x pp, or there is another grid.
    """
    global _cp_size, _delta_by_tokens, _sequence_parallel
    if parallel_state.model_parallel_is_initialized():
        if (tp, cp, pp, sequence_parallel, delta_by_tokens and cp > 1) != (
            tp_size(), cp_size(), pp_size(), _sequence_parallel, _delta_by_tokens
        ):  # fmt: skip
            raise ValueError(
                f"this process is part of a {tp_size()} x {cp_size()} x {pp_size()} "
                "(tp x cp x pp) grid already"
            )
        return
    world = 1 if alone and not dist.is_initialized() else world_size()
    if world % (tp * cp * pp):
        raise ValueError(f"{world} ranks cannot be divided into tp x cp x pp = {tp} x {cp} x {pp}")
    if device().type != "cuda":
        mappings.torch = _TorchOnCPU()
    join(timeout, alone=alone)
    with _equal_groups_once():
        parallel_state.initialize_model_parallel(
            tp,
            pp,
            context_parallel_size=cp,
            create_gloo_process_groups=False,
            distributed_timeout_minutes=2 * timeout / 60,
        )
    _cp_size, _sequence_parallel = cp, sequence_parallel
    _delta_by_tokens = delta_by_tokens and cp > 1


@contextmanager
def _equal_groups_once() -> Iterator[None]:
    """On a CPU, makes Megatron create one group for the same set of ranks, not up to eight.

    Each gloo group has three threads, one of which polls for messages a hundred times a second: 3 %
    of a core with 17 groups. (On GPUs each group is a communicator with a stream of its own.)
    """
    create, known = parallel_state.create_group, dict[Any, Any]()

    def once(ranks: list[int], **how: Any) -> Any:
        if (key := (*ranks, how.get("backend"))) not in known:
            known[key] = create(ranks, **how)
        return known[key]

    if device().type != "cuda":
        parallel_state.create_group = once
    try:
        yield
    finally:
        parallel_state.create_group = create


class _TorchOnCPU:
    """The torch module as Megatron's sequence-parallel gather and scatter need it without a GPU.

    They allocate on `torch.cuda.current_device()`, which fails there; nothing else in them needs
    CUDA.
    """

    class cuda:
        @staticmethod
        def current_device() -> torch.device:
            return torch.device("cpu")

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)


def leave_grid() -> None:
    """Destroys the grid, so that another can be built; nothing may still hold one of its groups.

    Megatron only drops its references; gloo groups would go on polling for messages.
    """
    global _cp_size, _delta_by_tokens, _sequence_parallel
    groups = parallel_state._global_process_group_list or []
    parallel_state.destroy_model_parallel()
    parallel_state._INTRA_PARTIAL_DATA_PARALLEL_GROUP_WITH_CP = None  # the one it forgets to reset
    for group in groups:
        if group is not None:  # None: the world
            dist.destroy_process_group(group)
    _cp_size, _sequence_parallel, _delta_by_tokens = 1, False, False


def shutdown() -> None:
    """Destroys the grid and leaves the world, so that the process exits without a warning.

    A caller that has made engines must collect garbage first: if a group is still alive, its thread
    may release its last message during interpreter shutdown, which aborts the process.
    """
    leave_grid()
    if dist.is_initialized():
        dist.destroy_process_group()


def tp_size() -> int:
    """How many ranks split each layer."""
    return parallel_state.get_tensor_model_parallel_world_size()


def tp_group() -> dist.ProcessGroup:
    """The ranks that split each layer with this one."""
    return parallel_state.get_tensor_model_parallel_group()


def tp_rank() -> int:
    """Which share of each layer this rank has."""
    return parallel_state.get_tensor_model_parallel_rank()


def sequence_parallel() -> bool:
    """Whether each tp rank holds only its share of the tokens between layers."""
    return _sequence_parallel and tp_size() > 1


def cp_size() -> int:
    """How many ranks split the tokens of each window."""
    return _cp_size


def cp_rank() -> int:
    """Which share of each window's tokens this rank has."""
    return parallel_state.get_context_parallel_rank()


def cp_group() -> dist.ProcessGroup:
    """The ranks that split the tokens of each window with this one."""
    return parallel_state.get_context_parallel_group()


def delta_by_tokens() -> bool:
    """Whether context-parallel ranks split the delta rule by tokens, not by heads."""
    return _delta_by_tokens


def head_ranks() -> int:
    """How many ranks split the heads inside mixers: tp x cp."""
    return tp_size() * cp_size()


def head_rank() -> int:
    """Which share of the heads inside mixers this rank has."""
    return tp_rank() * cp_size() + cp_rank()


def dp_rank() -> int:
    """This rank's index among those that hold the same weights and read different rows."""
    return parallel_state.get_data_parallel_rank()


def dp_size() -> int:
    """How many ranks hold the same weights and read different rows."""
    return parallel_state.get_data_parallel_world_size()


def dp_group() -> dist.ProcessGroup:
    """The ranks that hold the same weights as this one and read different rows."""
    return parallel_state.get_data_parallel_group()


def dp_cp_rank() -> int:
    """This rank's index among those that hold the same weights: cp + cp_size * dp."""
    return parallel_state.get_data_parallel_rank(with_context_parallel=True)


def dp_cp_size() -> int:
    """How many ranks hold the same weights; ZeRO shards over them."""
    return parallel_state.get_data_parallel_world_size(with_context_parallel=True)


def dp_cp_group() -> dist.ProcessGroup:
    """The ranks that hold the same weights as this one."""
    return parallel_state.get_data_parallel_group(with_context_parallel=True)


def stage_group() -> dist.ProcessGroup:
    """All ranks of this pipeline stage, in the order tp + tp_size * dp_cp."""
    return parallel_state.get_tensor_and_data_parallel_group(with_context_parallel=True)


def pp_size() -> int:
    """How many stages the blocks are split over."""
    return parallel_state.get_pipeline_model_parallel_world_size()


def pp_rank() -> int:
    """This rank's stage."""
    return parallel_state.get_pipeline_model_parallel_rank()


def pp_group() -> dist.ProcessGroup:
    """This rank and those of the other stages that it exchanges hidden states with."""
    return parallel_state.get_pipeline_model_parallel_group()


def model_group() -> dist.ProcessGroup:
    """The tp x pp ranks that together hold one whole model and read the same tokens."""
    return parallel_state.get_model_parallel_group()


def all_gather(x: Tensor, group: dist.ProcessGroup) -> list[Tensor]:
    """Each rank's x, in the order of the group; all have the same shape."""
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, x, group=group)
    return parts


def answers_for_rows() -> bool:
    """Whether this rank is the first of the tp x cp x pp ranks that read the same rows."""
    return tp_rank() == cp_rank() == pp_rank() == 0


def describe_rank() -> str:
    """This rank for messages: its number, its host, and its place in the grid."""
    if not parallel_state.model_parallel_is_initialized():
        return f"rank {os.environ.get('RANK', 0)} on {os.uname().nodename}, joining the other ranks"
    places = {"stage": (pp_rank(), pp_size()), "tp": (tp_rank(), tp_size())}
    places["cp"] = (cp_rank(), cp_size())
    places["dp"] = (dp_rank(), dp_size())
    where = ", ".join(f"{name} {rank} of {size}" for name, (rank, size) in places.items())
    return f"rank {dist.get_rank()} on {os.uname().nodename} ({where})"


def megatron_config(sequence_parallel: bool = False) -> ModelParallelConfig:
    """What Megatron's layers need to know of the grid.

    Args:
        sequence_parallel: the layer's output is split by tokens.
    """
    return ModelParallelConfig(
        tensor_model_parallel_size=tp_size(),
        pipeline_model_parallel_size=pp_size(),
        # required if there are stages; ours send messages in the dtype of h
        pipeline_dtype=torch.float32,
        sequence_parallel=sequence_parallel,
        use_cpu_initialization=True,
        perform_initialization=False,
        gradient_accumulation_fusion=False,
    )
