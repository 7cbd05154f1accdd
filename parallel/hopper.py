"""One gradient of flash-linear-attention's delta rule as matrix products, for Hopper GPUs.

Triton 3.4 to 3.7.0 miscompiles fla's kernel for the gradients of q, k, w and the decay on Hopper
(fla-org/flash-linear-attention#640), and fla refuses to run it. torch 2.9 to 2.12 come with such a
Triton. Chunks are independent in that kernel, so batched matrix products can replace it.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parallel.fused import fused
from parallel.norms import at_least_fp32


@functools.cache
def register() -> None:
    """Registers this backend with fla, once; fla uses it where it would otherwise refuse to run."""
    from fla.backends import BaseBackend
    from fla.backends import register as registered
    from fla.utils import IS_NVIDIA_HOPPER, TRITON_ABOVE_3_4_0, TRITON_ABOVE_3_7_1

    if not IS_NVIDIA_HOPPER or not TRITON_ABOVE_3_4_0 or TRITON_ABOVE_3_7_1:
        return

    class Products(BaseBackend):
        backend_type = "products"
        priority = 0

        def chunk_bwd_dqkwg_verifier(self, **given: Any) -> tuple[bool, str | None]:
            taken = given["g"] is not None and given.get("cu_seqlens") is None
            return taken and not given.get("state_v_first"), "gated, one length"

        def chunk_bwd_dqkwg(self, **given: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            names = ("q", "k", "v", "do", "h", "dh", "g", "dv", "scale")
            taken = {name: given[name] for name in names}
            return gradients_of_chunks(**taken, chunk=given["chunk_size"])

    registered("common")(Products)


def gradients_of_chunks(
    q: Tensor, k: Tensor, v: Tensor, do: Tensor, h: Tensor, dh: Tensor, g: Tensor, dv: Tensor,
    scale: float, chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of q, k, w and g from each chunk's output and final state.

        U = u - W S     O = scale (2^g Q S + (Q K^T D) U)     S' = 2^g_C S + (2^(g_C - g) K)^T U

    with D[t, i] = 2^(g_t - g_i) for i <= t: the rule of `parallel.delta_rule`, in powers of 2.

    Args:
        q, k: [B, T, Hk, K]. v: U, [B, T, H, V]. do: of O. dv: of U. h, dh: S and the gradient of
            S', [B, chunks, H, K, V]. g: log2 of the decay, summed up within chunks, [B, T, H].
    Returns:
        gradients of q and k [B, T, Hk, K], of w [B, T, H, K], and of g [B, T, H] in fp32.
    """
    key_heads, T = q.shape[2], q.shape[1]
    q, k, v, do, dv, g = _in_chunks(q, k, v, do, dv, g, chunk)
    S, dS = h.to(q.dtype).transpose(-1, -2), dh.to(q.dtype).transpose(-1, -2)  # [B, n, H, V, K]
    scores = _scores(do @ v.transpose(-1, -2), g, scale)  # [B, n, H, C, C]
    products = do @ S, v @ dS, scores @ k, scores.transpose(-1, -2) @ q, dv @ S
    return _together(q, k, g, h, dh, *products, scale, key_heads, T)


def _chunks(x: Tensor, chunk: int, heads: int) -> Tensor:
    """[B, T, heads or fewer, ...] -> [B, n, heads, C, ...], with zeros after the last token."""
    if missing := -x.shape[1] % chunk:
        x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, missing))
    x = x.unflatten(1, (-1, chunk)).transpose(2, 3)
    if (groups := heads // x.shape[2]) > 1:
        x = x.unsqueeze(3).expand(*x.shape[:3], groups, *x.shape[3:]).flatten(2, 3)
    return x.contiguous()


def _tokens(x: Tensor, T: int) -> Tensor:
    """[B, n, H, C, ...] -> [B, T, H, ...]."""
    return x.transpose(2, 3).flatten(1, 2)[:, :T].contiguous()


@fused
def _in_chunks(
    q: Tensor, k: Tensor, v: Tensor, do: Tensor, dv: Tensor, g: Tensor, chunk: int
) -> tuple[Tensor, ...]:
    """All inputs laid out for batched products; g is padded with its value at the last token."""
    if missing := -g.shape[1] % chunk:
        g = torch.cat([g, g[:, -1:].expand(-1, missing, -1)], dim=1)
    return tuple(_chunks(x, chunk, v.shape[2]) for x in (q, k, v, do, dv, g))


@fused
def _scores(products: Tensor, g: Tensor, scale: float) -> Tensor:
    """The gradient of Q K^T, [..., C, C]."""
    later = torch.ones(g.shape[-1], g.shape[-1], dtype=torch.bool, device=g.device).triu(1)
    # masked before the exponential, which may overflow above the diagonal
    decay = (g[..., :, None] - g[..., None, :]).masked_fill(later, float("-inf")).exp2()
    return (products * decay * scale).to(products.dtype)


@fused
def _together(
    q: Tensor, k: Tensor, g: Tensor, h: Tensor, dh: Tensor,
    of_S: Tensor, of_next: Tensor, of_k: Tensor, of_q: Tensor, dw: Tensor,
    scale: float, key_heads: int, T: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients, from the products [B, n, H, C, K]: q's through S and k, k's through S' and q,
    and w's.
    """
    last = g[..., -1:]
    dq = at_least_fp32(of_S) * (g.exp2() * scale)[..., None] + of_k
    of_next = at_least_fp32(of_next) * (last - g).exp2()[..., None]
    dk = of_next + of_q
    dg = _tokens((dq * q).sum(-1) - (dk * k).sum(-1), g.shape[1] * g.shape[3])
    # through the decay over the whole chunk: of S, and of what the chunk writes
    of_last = (at_least_fp32(h) * dh).sum((-1, -2)) * last[..., 0].exp2()
    of_last = of_last + (of_next * k).sum((-1, -2))  # [B, n, H]
    ends = F.pad(of_last[:, :, None], (0, 0, g.shape[3] - 1, 0)).flatten(1, 2)
    dg = dg + ends
    if dg.shape[1] > T:
        dg = torch.cat([dg[:, : T - 1], dg[:, T - 1 :].sum(1, keepdim=True)], dim=1)
    dq, dk = (_tokens(x.unflatten(2, (key_heads, -1)).sum(3), T) for x in (dq, dk))
    return dq.to(q.dtype), dk.to(k.dtype), _tokens(-dw, T), dg
