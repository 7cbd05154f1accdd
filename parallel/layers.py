"""The linears, embedding and cross-entropy of blocks: Megatron's tensor-parallel layers.

They are used at every world size, one rank included. Between them runs the residual stream. How it
enters and leaves the linears, of which each rank holds some features or heads:

                    stream [B, T, D],                 with sequence parallelism:
                    the same on every tp rank         [B*T/tp, D], a share of the tokens
    gather_tokens   identity; backward: all-reduce    all-gather; backward: reduce-scatter
    ColumnLinear    -> this rank's features           the same
    RowLinear       -> all-reduce over tp             reduce-scatter over tp
    all_tokens      identity                          all-gather, for the head

With context parallelism (`parallel.context`) all of this concerns the rank's own tokens only.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from parallel import mesh
from parallel.fused import fused
from parallel.megatron import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    scatter_to_sequence_parallel_region,
    set_tensor_model_parallel_attributes,
    vocab_parallel_cross_entropy,
)
from parallel.norms import at_least_fp32

SMALL = 2**17  # elements


def _initialized_by_the_model(weight: Tensor) -> None:
    """Does nothing. Megatron wants an initialiser, but the model draws each parameter by name."""


def _split(parameter: nn.Parameter, dim: int) -> None:
    """Marks a parameter as this rank's share of a larger one, for Megatron and DeepSpeed."""
    if mesh.tp_size() > 1:
        set_tensor_model_parallel_attributes(parameter, is_parallel=True, dim=dim, stride=1)


def split_parameter(*shape: int) -> nn.Parameter:
    """This rank's share, along dimension 0, of a parameter of this full shape; uninitialised."""
    parameter = nn.Parameter(torch.empty(shape[0] // mesh.tp_size(), *shape[1:]))
    _split(parameter, 0)
    return parameter


def split_dim(parameter: Tensor) -> int | None:
    """The dimension along which tp ranks split a parameter; None if it is replicated."""
    return parameter.partition_dim if getattr(parameter, "tensor_model_parallel", False) else None  # type: ignore[attr-defined]


def share(whole: Tensor, dim: int | None) -> Tensor:
    """This tp rank's share of a full tensor."""
    return whole if dim is None else whole.chunk(mesh.tp_size(), dim)[mesh.tp_rank()]


def partial_grad(parameter: Tensor) -> bool:
    """Whether a replicated parameter's gradient covers only this rank's heads or tokens, so that it
    must be summed over tp.
    """
    return getattr(parameter, "partial_grad", False) and mesh.tp_size() > 1


def gather_tokens(x: Tensor) -> Tensor:
    """All tokens [.., D], as input of ColumnLinears; one collective serves all that read them."""
    if mesh.sequence_parallel():
        return gather_from_sequence_parallel_region(x, group=mesh.tp_group())
    return copy_to_tp(x)


def copy_to_tp(x: Tensor) -> Tensor:
    """A replicated tensor as input of ColumnLinears; backward sums its gradient over tp."""
    if mesh.tp_size() == 1:
        return x
    return copy_to_tensor_model_parallel_region(x, group=mesh.tp_group())


def scatter_tokens(x: Tensor) -> Tensor:
    """The residual stream of [B, T, D], which is the same on every tp rank."""
    if not mesh.sequence_parallel():
        return x
    return scatter_to_sequence_parallel_region(x.flatten(0, 1), group=mesh.tp_group())


def all_tokens(x: Tensor) -> Tensor:
    """All tokens of the residual stream, [B*T, D], the same on every tp rank."""
    if not mesh.sequence_parallel():
        return x.flatten(0, 1)
    return gather_from_sequence_parallel_region(
        x, tensor_parallel_output_grad=False, group=mesh.tp_group()
    )


def empty_stream(rows: int, width: int, d_model: int, dtype: torch.dtype) -> Tensor:
    """An empty residual stream of `rows` windows of `width` tokens."""
    if not mesh.sequence_parallel():
        return torch.empty(rows, width, d_model, dtype=dtype, device=mesh.device())
    return torch.empty(rows * width // mesh.tp_size(), d_model, dtype=dtype, device=mesh.device())


def broadcast_rows(rows: Tensor, width: int) -> Tensor:
    """One value per row, [B], in a shape that broadcasts against the residual stream of windows of
    `width` tokens.
    """
    if not mesh.sequence_parallel():
        return rows[:, None, None]
    return rows.repeat_interleave(width).chunk(mesh.tp_size())[mesh.tp_rank()][:, None]


class _Linear(torch.autograd.Function):
    """x W^T. Saves the parameter itself for backward: ZeRO 3 frees its values in between, and
    autograd's own product would save a view of them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (x, weight), dy = ctx.saved_tensors, gradients[0]
        needs_dx, needs_dw = ctx.needs_input_grad
        dx = dy @ weight if needs_dx else None
        return dx, dy.flatten(0, -2).t() @ x.flatten(0, -2) if needs_dw else None


class _JointLinear(torch.autograd.Function):
    """x W^T for several W in one product. Saves the parameters for backward, not their copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, *weights)
        ctx.features = [len(w) for w in weights]
        return F.linear(x, torch.cat(weights)).split(ctx.features, dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        dy = torch.cat(gradients, dim=-1)
        dx = dy @ torch.cat(weights) if ctx.needs_input_grad[0] else None
        dw = dy.flatten(0, -2).t() @ x.flatten(0, -2)
        return dx, *dw.split(ctx.features)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [.., D], W [features, D] -> [.., features]."""
    under_zero_3 = hasattr(weight, "ds_status")
    if x.is_cuda and mesh.tp_size() == 1 and not under_zero_3:
        return F.linear(x, weight)  # less work for the host
    y: Tensor = _Linear.apply(x, weight)
    return y


class ColumnLinear(ColumnParallelLinear):
    """y = x W^T without bias; tp ranks split the output features. x comes from `gather_tokens`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            inputs,
            outputs,
            config=mesh.megatron_config(),
            init_method=_initialized_by_the_model,
            bias=False,
            disable_grad_reduce=True,  # `gather_tokens` does it, once for all linears that read x
            tp_group=mesh.tp_group(),
        )
        _split(self.weight, 0)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight)


def project(x: Tensor, *linears: ColumnLinear) -> tuple[Tensor, ...]:
    """The outputs of several linears of the same x: [.., D] -> [.., features] each.

    Concatenates small weights on a CPU, and three or more on CUDA: the copy costs less than the
    separate products and the sums of x's gradients.
    """
    weights = [linear.weight for linear in linears]
    if x.is_cuda and len(weights) > 2:
        parts: tuple[Tensor, ...] = _JointLinear.apply(x, *weights)
        return parts
    if x.is_cuda or sum(w.numel() for w in weights) > SMALL:
        return tuple(linear(x, w) for w in weights)
    return F.linear(x, torch.cat(weights)).split([len(w) for w in weights], dim=-1)


class RowLinear(RowParallelLinear):
    """y = x W^T without bias; tp ranks split the input features: [B, T, ..] -> residual stream."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            inputs,
            outputs,
            config=mesh.megatron_config(mesh.sequence_parallel()),
            init_method=_initialized_by_the_model,
            bias=False,
            input_is_parallel=True,
            skip_bias_add=False,
            tp_group=mesh.tp_group(),
        )
        _split(self.weight, 1)

    def forward(self, x: Tensor) -> Tensor:
        if mesh.tp_size() == 1:
            return linear(x, self.weight)
        return super().forward(x.flatten(0, -2) if self.sequence_parallel else x)[0]


class Embedding(VocabParallelEmbedding):
    """Token ids [B, T] -> [B, T, D]; the vocabulary is split over the tensor-parallel ranks."""

    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__(
            vocab_size,
            d_model,
            init_method=_initialized_by_the_model,
            config=mesh.megatron_config(),
            tp_group=mesh.tp_group(),
        )
        _split(self.weight, 0)


@fused
def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(at_least_fp32(logits), targets, reduction="none")


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each position, in at least fp32.

    Args:
        logits: [n, vocabulary of this rank]; overwritten if they are fp32 and tp > 1.
        targets: [n] int64, ids of the whole vocabulary.
    Returns:
        [n] losses in nats.
    """
    if mesh.tp_size() == 1:  # torch's own also takes fp64, which Megatron's rounds to fp32
        return _cross_entropy(logits, targets)
    return vocab_parallel_cross_entropy(logits.unsqueeze(1), targets.unsqueeze(1)).squeeze(1)


def vocab_parallel_argmax(logits: Tensor) -> Tensor:
    """The most likely token of each position, [n] int64. logits: [n, vocabulary of this rank]."""
    value, index = logits.max(dim=-1)
    if mesh.tp_size() == 1:
        return index
    mine = torch.stack(
        [at_least_fp32(value).double(), (index + mesh.tp_rank() * logits.shape[-1]).double()]
    )
    both = torch.stack(mesh.all_gather(mine, mesh.tp_group()))  # [tp, value and index, n]
    return both[:, 1].gather(0, both[:, 0].argmax(dim=0, keepdim=True))[0].long()
