"""A fast path for decoding: one token of each of B sessions in one forward pass.

It computes the wake pass of `one_pass`. For a small model a token is some hundred operations on a
few numbers each, so the overheads count that are negligible in training: planning a window,
building masks, dispatching operators. Here a session's memory is updated in place
(`pretrain.inference.memory`), the projections that read the same input are one matrix, and nothing
is decided per token. The results are those of `parallel/`, which tests/inference/test_session.py
checks.

Sessions may differ in everything they remember, in how full their windows are, and in N. The
weights are read once for all of them; S and the convolutions are batched, attention runs session by
session over the keys that each has.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallel import mesh
from parallel.attention import Attention
from parallel.block import Block
from parallel.gated_delta_net import GatedDeltaNet
from parallel.layers import RowLinear
from parallel.megatron import (
    gather_from_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from parallel.mlp import MLP
from parallel.norms import at_least_fp32
from parallel.shape import UNIT_EPS
from parallel.state import AttentionState, DeltaState
from parallel.window import rotary_frequency
from pretrain.errors import UserError
from pretrain.inference.memory import SessionMemory
from pretrain.model.sleep import SleepLM


class Decoder:
    """A model laid out for reading token by token.

    The parameters of linears become views of the fused matrices used here, so there is only one
    copy of them; norms, convolutions and decays are copies, computed once, and so is the
    fingerprint. So the weights must not change while a Decoder is in use.

    From then on this process does without cuDNN's attention, which torch prefers on Hopper and
    Blackwell in bf16: it prepares a kernel for each new number of keys, so for every token.

    Raises:
        ValueError: the model is one pipeline stage of several, or runs with sequence parallelism.
        UserError: it is a control experiment, which sessions do not support.
    """

    @torch.no_grad()
    def __init__(self, model: SleepLM) -> None:
        whole = model.stage.is_first and model.stage.is_last
        if not whole or mesh.sequence_parallel() or mesh.cp_size() > 1:
            raise ValueError(
                "a session needs the whole model and all tokens: no stages, no sequence and no "
                "context parallelism"
            )
        if model.sleep.is_control:
            raise UserError(
                "the run is a control (sleep.when, sleep.carries or sleep.eviction): it can be "
                "evaluated, but cannot generate; train a run that sleeps"
            )
        torch.backends.cuda.enable_cudnn_sdp(False)
        self.model = model.eval()
        self.blocks = [_TokenBlock(block) for block in model.blocks_of(slice(None))]
        self.norm = _Norm(1 + at_least_fp32(model.norm.weight), model.norm.eps)
        # a tied head is left as it is: the embedding reads it by rows
        self.head = model.embed.weight.T if model.head is None else _side_by_side(model.head.weight)
        self.rotary = _Rotary(model)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of everything that a memory's meaning depends on: weights, sizes, windows."""
        sleep = asdict(self.model.sleep)
        # N is set per session; gradient truncation does not affect memories.
        for free in ("passes", "min_passes", "curriculum", "truncate_passes", "truncate_windows"):
            del sleep[free]
        said = hashlib.sha256(json.dumps([asdict(self.model.config), sleep]).encode())
        for name, parameter in sorted(self.model.named_parameters()):
            said.update(f"{name} {parameter.dtype} {list(parameter.shape)}".encode())
            said.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return said.hexdigest()

    @torch.inference_mode()
    def step(self, memories: Sequence[SessionMemory], tokens: Sequence[int]) -> Tensor:
        """Reads one token into each of B memories, whose windows must not be full.

        Returns:
            logits [B, vocabulary] of the next token.
        """
        device = self.model.device
        x = self.model.embed(torch.tensor(tokens, device=device))  # [B, D]
        rotation = self.rotary.at(memories)
        core = self.model.core
        for b, block in enumerate(self.blocks):
            x = block(x, memories, [memory.blocks[b] for memory in memories], rotation)
            if b + 1 == core.stop:
                for row, memory in enumerate(memories):
                    memory.hidden[0, memory.filled] = x[row]
        for memory in memories:
            memory.filled += 1
        return self.logits(x)

    def logits(self, y: Tensor) -> Tensor:
        """[n, D] -> [n, vocabulary], the same on every tensor-parallel rank."""
        logits = self.norm(y) @ self.head
        if mesh.tp_size() > 1:
            return gather_from_tensor_model_parallel_region(logits, group=mesh.tp_group())
        return logits


class _TokenBlock:
    """`parallel.block.Block` for one token per row."""

    def __init__(self, block: Block) -> None:
        mixer = block.mixer
        self.mixer = _TokenAttention(mixer) if isinstance(mixer, Attention) else _TokenDelta(mixer)
        self.mixer_norm, self.mlp_norm = (
            _Norm(1 + at_least_fp32(norm.weight), norm.eps)
            for norm in (block.mixer_norm, block.mlp_norm)
        )
        self.mlp = _TokenMLP(block.mlp)

    def __call__(
        self,
        x: Tensor,
        memories: Sequence[SessionMemory],
        states: Sequence[Any],  # of the mixer's own kind
        rotation: tuple[Tensor, Tensor, Tensor],
    ) -> Tensor:
        x = self.mixer(x, self.mixer_norm(x), memories, states, rotation)
        return self.mlp(x, self.mlp_norm(x))


class _Norm:
    """x / rms(x) * scale over the last dimension, in at least fp32; a third of F.rms_norm's
    operators.
    """

    def __init__(self, scale: Tensor, eps: float) -> None:
        self.scale, self.mean = scale, 1 / scale.shape[-1]
        self.eps = scale.new_full((), eps)

    def __call__(self, x: Tensor) -> Tensor:
        wide = at_least_fp32(x)
        size = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = torch.addcmul(self.eps, size, size, value=self.mean).rsqrt_()
        return (wide * inverse).mul_(self.scale).type_as(x)


class _TokenMLP:
    """`parallel.mlp.MLP`: x [B, D], and x normed -> x with the MLP's output added."""

    def __init__(self, mlp: MLP) -> None:
        self.into = _side_by_side(mlp.gate.weight, mlp.up.weight)
        self.out = _Out(mlp.down)

    def __call__(self, x: Tensor, normed: Tensor) -> Tensor:
        gate, up = normed.mm(self.into).chunk(2, dim=-1)
        return self.out(x, F.silu(gate).mul_(up))


class _TokenDelta:
    """`parallel.gated_delta_net.GatedDeltaNet` for one token, by the recurrent delta rule."""

    def __init__(self, net: GatedDeltaNet) -> None:
        self.into = _side_by_side(
            net.k.weight, net.v.weight, net.q.weight,
            net.gate.weight, net.beta.weight, net.alpha.weight,
        )  # fmt: skip
        self.taps = torch.cat([net.conv_k, net.conv_v, net.conv_q]).T.contiguous()  # [taps, C]
        self.H, self.Hk, self.K, self.V = net.value_heads, net.key_heads, net.key_dim, net.value_dim
        values, keys = self.H * self.V, self.Hk * self.K
        self.parts = [values + 2 * keys, values, self.H, self.H]
        self.streams = [keys, values, keys]
        self.rate = -at_least_fp32(net.A_log).exp()
        self.dt_bias = at_least_fp32(net.dt_bias)
        self.write_strength = net.write_strength
        self.norm = _Norm(at_least_fp32(net.norm.weight), net.norm.eps)
        self.out = _Out(net.out)

    def __call__(
        self,
        x: Tensor,
        normed: Tensor,
        memories: Sequence[SessionMemory],
        states: Sequence[DeltaState],
        rotation: tuple[Tensor, Tensor, Tensor],
    ) -> Tensor:
        B, H, K, V = len(x), self.H, self.K, self.V
        streams, gate, beta, alpha = normed.mm(self.into).split(self.parts, dim=-1)
        k, v, q = self._convolve(streams, states).split(self.streams, dim=-1)
        v = at_least_fp32(v).reshape(B * H, 1, V)
        k, q = self._unit(torch.cat([k, q], dim=-1))  # [B*H, K]
        decay = F.softplus(at_least_fp32(alpha) + self.dt_bias).mul_(self.rate).exp_()
        beta = self.write_strength(beta)

        alone = len(states) == 1
        S = states[0].S if alone else torch.cat([state.S for state in states])
        S = S.view(B * H, K, V).mul_(decay.reshape(-1, 1, 1))
        write = torch.baddbmm(v, k[:, None], S, alpha=-1).mul_(beta.reshape(-1, 1, 1))
        S.baddbmm_(k[:, :, None], write)
        o = torch.baddbmm(v, q[:, None], S, beta=0, alpha=K**-0.5)  # beta=0: v is not read
        if not alone:
            torch._foreach_copy_([state.S for state in states], list(S.view(B, H, K, V).split(1)))

        y = self.norm(o.view(B, H, V)).flatten(1).type_as(gate) * F.silu(at_least_fp32(gate))
        return self.out(x, y.type_as(x))

    def _convolve(self, new: Tensor, states: Sequence[DeltaState]) -> Tensor:
        """Causal depthwise convolution and SiLU of the newest of the inputs [B, C]."""
        tails = states[0].tail if len(states) == 1 else torch.cat([s.tail for s in states])
        inputs = torch.cat([tails, new[:, None]], dim=1)  # [B, taps, C]
        if len(states) == 1:
            states[0].tail.copy_(inputs[:, 1:])
        else:
            torch._foreach_copy_([s.tail for s in states], list(inputs[:, 1:].split(1)))
        return F.silu((inputs * self.taps).sum(dim=1))

    def _unit(self, kq: Tensor) -> Sequence[Tensor]:
        """k and q [B*H, K] of unit length, key heads repeated for the value heads that they
        serve.
        """
        kq = at_least_fp32(kq).reshape(-1, 2, self.Hk, self.K)
        size = torch.linalg.vector_norm(kq, dim=-1, keepdim=True)
        kq = kq * size.square_().add_(UNIT_EPS).rsqrt_()
        if self.Hk != self.H:
            kq = kq.repeat_interleave(self.H // self.Hk, dim=2)
        return [part.reshape(-1, self.K) for part in kq.unbind(1)]


class _TokenAttention:
    """`parallel.attention.Attention` for one query per row, over the keys of its own session."""

    def __init__(self, attention: Attention) -> None:
        a = attention
        self.into = _side_by_side(a.q.weight, a.k.weight, a.v.weight, a.gate.weight)
        self.bias = self._bias(a)
        self.H, self.Hkv, self.head = a.heads, a.kv_heads, a.head_dim
        queries, keys = a.heads * a.head_dim, a.kv_heads * a.head_dim
        self.parts = [queries + keys, keys, queries]
        self.norm = self._norm(a)
        self.out = _Out(a.out)

    @staticmethod
    def _norm(a: Attention) -> _Norm | nn.Identity:
        """The norm of all query and key heads at once."""
        if isinstance(a.q_norm, nn.Identity) or isinstance(a.k_norm, nn.Identity):
            return nn.Identity()
        q_scale, k_scale = 1 + at_least_fp32(a.q_norm.weight), 1 + at_least_fp32(a.k_norm.weight)
        scale = torch.cat([q_scale.expand(a.heads, -1), k_scale.expand(a.kv_heads, -1)])
        return _Norm(scale, a.q_norm.eps)

    @staticmethod
    def _bias(a: Attention) -> Tensor | None:
        """The bias of all projections at once; zeros for the gate, which has none."""
        if not a.has_bias:
            return None
        return torch.cat([a.q_bias, a.k_bias, a.v_bias, torch.zeros_like(a.q_bias)]).detach()

    def __call__(
        self,
        x: Tensor,
        normed: Tensor,
        memories: Sequence[SessionMemory],
        states: Sequence[AttentionState],
        rotation: tuple[Tensor, Tensor, Tensor],
    ) -> Tensor:
        B = len(x)
        projected = normed.mm(self.into)
        if self.bias is not None:
            projected += self.bias
        qk, v, gate = projected.split(self.parts, dim=-1)
        qk = self.norm(qk.view(B, -1, self.head))
        cos, sin, swapped = rotation
        qk = torch.addcmul(qk * cos, qk.index_select(-1, swapped), sin).type_as(v)
        q, k = qk.split([self.H, self.Hkv], dim=1)  # [B, heads, head]
        q = q.view(B, 1, self.Hkv, -1, self.head)  # the queries of a key head take the place of T
        v = v.view(B, self.Hkv, self.head)
        read = []
        for row, (memory, state) in enumerate(zip(memories, states, strict=True)):
            new = memory.past + memory.filled
            state.k[0, :, new], state.v[0, :, new] = k[row], v[row]
            band = slice(max(0, new + 1 - memory.hidden.shape[1]), new + 1)  # the last L keys
            keys, values = state.k[:, :, band], state.v[:, :, band]
            read.append(F.scaled_dot_product_attention(q[row], keys, values))
        y = (read[0] if B == 1 else torch.cat(read)).view(B, -1)
        return self.out(x, y * torch.sigmoid(gate))


class _Rotary:
    """`parallel.attention.rotate` for one position per row: x cos + (x with its halves swapped)
    sin, with cos = 1 and sin = 0 for features that are not rotated.
    """

    def __init__(self, model: SleepLM) -> None:
        shape, device = model.config, model.device
        half = shape.rotary_dim // 2
        self.frequency = torch.zeros(shape.attention_head_dim, dtype=torch.float64, device=device)
        self.frequency[: 2 * half] = rotary_frequency(shape, device).repeat(2)
        self.sign = torch.ones_like(self.frequency)
        self.sign[:half] = -1
        self.swapped = torch.arange(shape.attention_head_dim, device=device)
        self.swapped[: 2 * half] = self.swapped[: 2 * half].roll(half)
        self.is_absolute = model.sleep.slides

    def at(self, memories: Sequence[SessionMemory]) -> tuple[Tensor, Tensor, Tensor]:
        """cos and sin [B, 1, head] of each row's next position, and the index that swaps halves."""
        positions = [[[m.filled + (m.position if self.is_absolute else 0)]] for m in memories]
        angle = torch.tensor(positions, device=self.frequency.device) * self.frequency
        return angle.cos().float(), (angle.sin() * self.sign).float(), self.swapped


class _Out:
    """A row-parallel linear whose output is added to the residual stream: x + y W^T."""

    def __init__(self, linear: RowLinear) -> None:
        self.weight, self.is_split = _side_by_side(linear.weight), mesh.tp_size() > 1

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        if self.is_split:
            y = y @ self.weight
            return x + reduce_from_tensor_model_parallel_region(y, group=mesh.tp_group())
        return torch.addmm(x, y, self.weight)


def _side_by_side(*parameters: nn.Parameter) -> Tensor:
    """Concatenates matrices [.., D] into one, transposed, [D, ..]; they become views of it.

    Its memory layout is [D, ..] too: with few rows, a product is limited by reading the matrix, and
    a CPU reads this layout a third faster.
    """
    whole = torch.cat([p.detach().T for p in parameters], dim=1)
    columns = whole.split([len(p) for p in parameters], dim=1)
    for parameter, own in zip(parameters, columns, strict=True):
        parameter.data = own.T
    return whole
