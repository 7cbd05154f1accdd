"""One gradient of flash-linear-attention's delta rule in plain products, where its kernel is wrong.

From Triton 3.4 to 3.7.0 its kernel for the gradients of q, k, w and the decay is compiled wrongly
on Hopper (fla-org/flash-linear-attention#640), and fla refuses to run it. torch 2.9 to 2.11 bring
such a Triton. All chunks are independent there, so batched matrix products do the same.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parallel.fused import fused


@functools.cache
def register() -> None:
    """Tells fla of it, once; it is taken where fla would refuse to go on."""
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
    """What a chunk's read-out and the state it leaves give to the gradients of q, k, w and g.

        U = u - W S     O = scale (2^g Q S + (Q K^T D) U)     S' = 2^g_C S + (2^(g_C - g) K)^T U

    with D[t, i] = 2^(g_t - g_i) for i <= t, as `parallel.delta_rule` has it in powers of e.

    Args:
        q, k: [B, T, Hk, K]. v: U, [B, T, H, V]. do: of O. dv: of U. h, dh: S and the gradient of
            S', [B, chunks, H, K, V]. g: log2 of the decay, summed up within chunks, [B, T, H].
    Returns:
        of q, k [B, T, Hk, K], of w [B, T, H, K], and of g [B, T, H] in fp32.
    """
    B, T, Hk = q.shape[:3]
    H, C = v.shape[2], chunk
    n = -(-T // C)

    def chunks(x: Tensor) -> Tensor:
        """[B, T, heads, ...] -> [B, n, H, C, ...]."""
        x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, n * C - T)) if n * C > T else x
        x = x.unflatten(1, (n, C)).transpose(2, 3)
        return x if x.shape[2] == H else x.repeat_interleave(H // x.shape[2], dim=2)

    def whole(x: Tensor) -> Tensor:
        """[B, n, H, C, ...] -> [B, T, H, ...]."""
        return x.transpose(2, 3).flatten(1, 2)[:, :T]

    q, k, v, do, dv, g = (chunks(x) for x in (q, k, v, do, dv, g))
    S, dS = h.to(q.dtype).transpose(-1, -2), dh.to(q.dtype).transpose(-1, -2)  # [B, n, H, V, K]
    last = torch.full((n,), C - 1, device=g.device)
    last[-1] = T - 1 - (n - 1) * C
    g_last = g.gather(-1, last.view(1, n, 1, 1).expand(B, n, H, 1))  # [B, n, H, 1]
    scores = _scores(do @ v.transpose(-1, -2), g, scale)  # [B, n, H, C, C]
    of_last = _of_last(h, dh, g_last)
    dq, dk, of_last = _decayed(do @ S, v @ dS, k, g, g_last, of_last, scale)
    dq = dq + scores @ k
    dk = dk + scores.transpose(-1, -2) @ q
    dg = _of_decay(dq, q, dk, k)
    dg = dg.scatter_add(-1, last.view(1, n, 1, 1).expand(B, n, H, 1), of_last)
    dq, dk = (whole(x).unflatten(2, (Hk, H // Hk)).sum(3).to(q.dtype) for x in (dq, dk))
    return dq, dk, -whole(dv @ S), whole(dg)


@fused
def _scores(products: Tensor, g: Tensor, scale: float) -> Tensor:
    """The gradient of Q K^T, [..., C, C]."""
    later = torch.ones(g.shape[-1], g.shape[-1], dtype=torch.bool, device=g.device).triu(1)
    # masked before the exponential, which may overflow above the diagonal
    decay = (g[..., :, None] - g[..., None, :]).masked_fill(later, float("-inf")).exp2()
    return (products * decay * scale).to(products.dtype)


@fused
def _of_last(h: Tensor, dh: Tensor, g_last: Tensor) -> Tensor:
    """What the decay of the state over the whole chunk gives to g's last value, [..., 1]."""
    return (h.float() * dh.float()).sum((-1, -2))[..., None] * g_last.exp2()


@fused
def _decayed(
    dq: Tensor, dk: Tensor, k: Tensor, g: Tensor, g_last: Tensor, of_last: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The parts of S and S' in the gradients of q and k, in fp32; and of k's in g's last value."""
    dq = dq.float() * (g.exp2() * scale)[..., None]
    dk = dk.float() * (g_last - g).exp2()[..., None]
    return dq, dk, of_last + (dk * k).sum((-1, -2))[..., None]


@fused
def _of_decay(dq: Tensor, q: Tensor, dk: Tensor, k: Tensor) -> Tensor:
    return (dq * q).sum(-1) - (dk * k).sum(-1)
