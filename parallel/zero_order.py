"""Makes ZeRO reduce gradients and gather weights in the same order on every rank.

By default DeepSpeed reduces each gradient as soon as autograd has it, and prefetches weights in the
order in which it has seen modules run. In a model that loops, neither order is the same on all
ranks: which of two ready gradients comes first depends on what else is ready, and so on the rows
that a rank reads; and successive microbatches may run different blocks. If a collective then meets
another one of the same size, different parameters are summed, silently.

Here gradients are held until backward is over and are reduced in the order of the parameters;
missing ones count as zeros. A looped model's gradients are complete only at the end of backward, so
holding them costs nothing. ZeRO 3's weights are gathered block by block, when a block runs; ranks
compare the order in which they gathered before the gradients are used.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel import mesh
from parallel.block import Block
from parallel.combinations import MAX_WHOLE


def reduce_in_order(optimizer: Any, zero: int, parameters: Sequence[nn.Parameter]) -> None:
    """Makes a DeepSpeed optimiser of ZeRO 1..3 reduce all gradients, in this order, after backward.

    Args:
        optimizer: DeepSpeed's wrapper of ours. ZeRO 1's bf16 optimiser already does so by itself.
    """
    if zero == 1:
        if hasattr(optimizer, "reduce_gradients"):
            reduce = optimizer.reduce_gradients

            def with_all(*arguments: Any, **named: Any) -> None:
                fill_missing(parameters)
                optimizer.setup_buckets()
                reduce(*arguments, **named)

            optimizer.reduce_gradients = with_all
        return
    hand_over = optimizer.process_gradients if zero == 2 else _to_bucket_of_stage_3(optimizer)
    finish = optimizer.overlapping_partition_gradients_reduce_epilogue

    def all_in_order() -> None:
        fill_missing(parameters)
        optimizer._coalesce_grad_reduction = False
        for parameter in parameters:
            hand_over(parameter, 0)  # 0: the group of all parameters
        optimizer._coalesce_grad_reduction = True
        finish()

    optimizer._coalesce_grad_reduction = True  # backward leaves gradients where they are
    optimizer.overlapping_partition_gradients_reduce_epilogue = all_in_order


def _to_bucket_of_stage_3(optimizer: Any) -> Callable[[nn.Parameter, int], None]:
    return lambda parameter, _: optimizer.reduce_ready_partitions_and_remove_grads(parameter)


def fill_missing(parameters: Sequence[nn.Parameter]) -> None:
    """Gives parameters without a gradient one of zeros: other ranks may have one to reduce."""
    for parameter in parameters:
        if parameter.grad is None:
            held = parameter.data  # empty if ZeRO 3 has released it
            parameter.data = held.new_zeros(getattr(parameter, "ds_shape", held.shape))
            parameter.grad = torch.zeros_like(parameter)
            parameter.data = held


class WeightGathering:
    """Gathers ZeRO 3's weights when they are needed, and releases them.

    Small parameters stay gathered; so do those outside blocks, which every window needs, from a
    forward to the next step. A block's are gathered when it runs, in forward, recomputation or
    backward, and stay until others need the room (`MAX_WHOLE`); the least recently run block goes
    first. Autograd runs a graph in reverse order of creation, so a block's backward, and with it
    the last use of its weights, is over before another block's begins.
    """

    def __init__(self, optimizer: Any, model: nn.Module) -> None:
        """
        Args:
            optimizer: DeepSpeed's for ZeRO 3; its own hooks on modules are removed.
        """
        optimizer.parameter_offload.destroy()
        blocks = [module for module in model.modules() if isinstance(module, Block)]
        self._blocks: list[list[Any]] = [
            [p for p in b.parameters() if not _stays(p)] for b in blocks
        ]
        of_blocks = {p for parameters in self._blocks for p in parameters}
        self._always = [p for p in model.parameters() if p not in of_blocks]
        self._whole: dict[int, None] = {}  # gathered blocks, the most recently run last
        self.order = 0  # a checksum of the order of gathers since the last `check`
        model.register_forward_pre_hook(lambda *_: self._begin())
        for number, block in enumerate(blocks):
            block.register_forward_pre_hook(lambda *_, number=number: self._need(number))
            block.register_forward_hook(
                lambda _, inputs, outputs, number=number: self._need_again(number, inputs, outputs)
            )

    def _begin(self) -> None:
        """At the model's forward: an optimiser step in between has released the blocks."""
        self._whole = {b: None for b in self._whole if not _missing(self._blocks[b])}
        self._gather(-1, self._always)

    def _need(self, number: int) -> None:
        """Before a block runs."""
        if number not in self._whole:
            room = MAX_WHOLE - _elements(self._blocks[number])
            while self._whole and sum(_elements(self._blocks[b]) for b in self._whole) > room:
                oldest = next(iter(self._whole))
                del self._whole[oldest]
                for parameter in self._blocks[oldest]:
                    parameter.partition()
            self._gather(number, self._blocks[number])
        self._whole.pop(number, None)
        self._whole[number] = None

    def _need_again(self, number: int, inputs: Any, outputs: Any) -> None:
        """After a block's forward: has its weights gathered again when the first gradient of an
        output arrives, where the block's backward begins.
        """
        given = {id(tensor) for tensor in _tensors(inputs)}
        for tensor in _tensors(outputs):
            if tensor.grad_fn is not None and id(tensor) not in given:
                tensor.register_hook(lambda _: self._need(number))

    def _gather(self, number: int, parameters: Sequence[Any]) -> None:
        missing = _missing(parameters)
        if missing:
            self.order = zlib.crc32(number.to_bytes(4, "little", signed=True), self.order)
            missing[0].all_gather_coalesced(missing).wait()

    def check(self) -> None:
        """After a microbatch's backward.

        Raises:
            RuntimeError: on all ranks that hold the same weights, if one has gathered in another
                order: then ranks have computed with each other's weights.
        """
        mine, self.order = torch.tensor([self.order]), 0
        everyone = mesh.all_gather(mine, mesh.dp_cp_group())
        ranks = dist.get_process_group_ranks(mesh.dp_cp_group())
        others = [r for r, seen in zip(ranks, everyone, strict=True) if seen != everyone[0]]
        if others:
            raise RuntimeError(
                f"{mesh.describe_rank()}: rank {others[0]} has gathered weights in another order "
                f"than rank {ranks[0]}: their rows made them run different blocks"
            )


def _stays(parameter: Any) -> bool:
    """Whether DeepSpeed keeps a parameter gathered because it is small."""
    return bool(parameter.ds_persist)


def _missing(parameters: Sequence[Any]) -> list[Any]:
    return [p for p in parameters if p.ds_status.name == "NOT_AVAILABLE"]


def _elements(parameters: Sequence[Any]) -> int:
    return sum(p.ds_numel for p in parameters)


def _tensors(nested: Any) -> list[Tensor]:
    """The tensors of nested tuples."""
    if isinstance(nested, Tensor):
        return [nested]
    return [t for part in nested for t in _tensors(part)] if isinstance(nested, tuple) else []
