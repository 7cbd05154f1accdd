"""In which order ZeRO reduces gradients and gathers weights: one that every rank has.

Left alone, DeepSpeed reduces each gradient when autograd has it, and gathers weights as it expects
modules to run from what it has seen. Neither order is the same everywhere in a model that loops:
which of two gradients comes first, where both are ready, depends on all else that is ready, and so
on the rows a rank reads; and what one microbatch runs is not what the next one does. A collective
that meets another one of its size then sums different parameters, without a word.

Here gradients wait until backward is over and are reduced in the order of the parameters, those
that a rank has none of as zeros. A looped model's gradients are whole only at the end of backward,
so that holding them costs nothing. Weights of ZeRO 3 are gathered block by block, when a block
runs; ranks compare what they have gathered before anything comes of it.
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
        optimizer: DeepSpeed's around ours; its bf16 optimiser of ZeRO 1 does so by itself.
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
    """Gives parameters without a gradient one of zeros: another rank may have more to add."""
    for parameter in parameters:
        if parameter.grad is None:
            held = parameter.data  # empty, where ZeRO 3 has taken it away
            parameter.data = held.new_zeros(getattr(parameter, "ds_shape", held.shape))
            parameter.grad = torch.zeros_like(parameter)
            parameter.data = held


class WeightGathering:
    """Brings ZeRO 3's weights together when they are needed, and lets them go.

    Small parameters stay; so do those outside of blocks, which every window needs, from a forward
    to the next step. A block's come when it runs, forward, recomputed or backward, and stay until
    others need the room (`MAX_WHOLE`): those that ran last stay longest. Autograd runs a graph in
    the opposite order of its making, so a block's backward, and with it the last use of its
    weights, is over before another block's begins.
    """

    def __init__(self, optimizer: Any, model: nn.Module) -> None:
        """
        Args:
            optimizer: DeepSpeed's of ZeRO 3, whose own hooks on modules are taken away.
        """
        optimizer.parameter_offload.destroy()
        blocks = [module for module in model.modules() if isinstance(module, Block)]
        self._blocks: list[list[Any]] = [
            [p for p in b.parameters() if not _stays(p)] for b in blocks
        ]
        of_blocks = {p for parameters in self._blocks for p in parameters}
        self._always = [p for p in model.parameters() if p not in of_blocks]
        self._whole: dict[int, None] = {}  # blocks that are here, the one that ran last at the end
        self.order = 0  # a checksum of what has been gathered, in order, since the last `check`
        model.register_forward_pre_hook(lambda *_: self._begin())
        for number, block in enumerate(blocks):
            block.register_forward_pre_hook(lambda *_, number=number: self._need(number))
            block.register_forward_hook(
                lambda _, inputs, outputs, number=number: self._need_again(number, inputs, outputs)
            )

    def _begin(self) -> None:
        """At the model's forward: a step between takes away what was here."""
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
        """After a block's forward: its backward begins where the first of its outputs' gradients
        arrives.
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
            RuntimeError: on all ranks that hold the same weights, naming those that have gathered
                in another order: they have computed with each other's weights.
        """
        mine, self.order = torch.tensor([self.order]), 0
        everyone = [torch.empty_like(mine) for _ in range(mesh.dp_cp_size())]
        dist.all_gather(everyone, mine, group=mesh.dp_cp_group())
        ranks = dist.get_process_group_ranks(mesh.dp_cp_group())
        others = [r for r, seen in zip(ranks, everyone, strict=True) if seen != everyone[0]]
        if others:
            raise RuntimeError(
                f"{mesh.describe_rank()}: rank {others[0]} has gathered weights in another order "
                f"than rank {ranks[0]}: their rows made them run different blocks"
            )


def _stays(parameter: Any) -> bool:
    """Whether DeepSpeed keeps a parameter whole: it is small."""
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
