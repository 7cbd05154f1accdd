"""The gated delta rule in chunks of C tokens, and its gradient, written out.

With G = cumsum(log_decay) in the chunk and D[t, i] = exp(G_t - G_i) for i <= t, else 0:

    A = strict_lower(b_t D[t, i] k_t . k_i)
    U = (I + A)^-1 (b (V - exp(G) (K S_0)))          the values that are actually written
    O = exp(G) (Q S_0) + ((Q K^T) D) U               Q scaled by 1/sqrt(K)
    S = exp(G_C) S_0 + (exp(G_C - G) K)^T U

(Yang et al., arXiv 2412.06464, section 3.3.) (I + A)^-1 does not depend on S_0, so it is computed
for all chunks at once; only U, O and S, and their gradients in backward, are computed chunk by
chunk. Autograd would take more than twice as many operations for the same gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class _Chunks(NamedTuple):
    """Tokens in N = B * H * n chunks of C; the n chunks of one row and head are consecutive."""

    B: int
    T: int
    H: int
    n: int
    C: int

    def split(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """[B, T, Hk, ...] -> [N, C, ...]; a key head is repeated for each value head it serves.
        The last chunk is padded with zeros, which write nothing and decay nothing.
        """
        x = x.to(dtype).transpose(1, 2)  # [B, Hk, T, ...]
        if (group := self.H // x.shape[1]) > 1:
            x = x.repeat_interleave(group, dim=1)
        if self.n * self.C > self.T:
            x = F.pad(x, (0, 0) * (x.dim() - 3) + (0, self.n * self.C - self.T))
        return x.reshape(-1, self.C, *x.shape[3:])

    def join(self, x: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
        """[N, C, ...] -> [B, T, heads, ...]; sums over the value heads that share a key head."""
        x = x.view(self.B, self.H, -1, *x.shape[2:])[:, :, : self.T]
        if heads < self.H:
            x = x.unflatten(1, (heads, -1)).sum(2)
        return x.transpose(1, 2).to(dtype)

    def together(self, parts: Sequence[Tensor]) -> Tensor:
        """[B * H, ...] of each chunk in turn -> [N, ...]."""
        return torch.stack(list(parts), dim=1).flatten(0, 1) if self.n > 1 else parts[0]


class ChunkedDeltaRule(torch.autograd.Function):
    """(q or None, k, v, log_decay, beta, S, chunk) -> (o or None, S), as
    `parallel.delta_rule.recurrent_delta_rule`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor | None,
        k: Tensor,
        v: Tensor,
        log_decay: Tensor,
        beta: Tensor,
        S: Tensor,
        chunk: int,
    ) -> tuple[Tensor | None, Tensor]:
        dtype, out_dtype = S.dtype, v.dtype
        ctx.given = [
            None if x is None else (x.shape[2], x.dtype) for x in (q, k, v, log_decay, beta)
        ]
        B, T, H, _ = v.shape
        C = min(chunk, T)
        chunks = _Chunks(B, T, H, -(-T // C), C)
        k, v, b = (chunks.split(x, dtype) for x in (k, v, beta[..., None]))
        G = chunks.split(log_decay, dtype).cumsum(-1)  # [N, C]
        decay = G.exp()[..., None]  # [N, C, 1]

        # Above the diagonal exp may overflow; tril zeroes it, inf included.
        D = (G[:, :, None] - G[:, None, :]).exp_().tril_()
        kk = torch.bmm(k, k.mT).mul_(D)
        inverse = torch.linalg.solve_triangular(  # of I + b kk; only what is below the diagonal
            b * kk, torch.eye(C, dtype=dtype, device=k.device), upper=False, unitriangular=True
        )
        values = torch.bmm(inverse, b * v)
        reads = torch.bmm(inverse, (b * decay) * k)  # U = values - reads @ S_0
        to_end = (G[:, -1:] - G).exp_()[..., None]
        k_decayed = to_end * k
        kept = decay[:, -1:]  # [N, 1, 1]
        scores = q_decayed = None
        if q is not None:
            q = chunks.split(q, dtype) * q.shape[-1] ** -0.5
            scores, q_decayed = torch.bmm(q, k.mT).mul_(D), decay * q

        state, written, found, out = S.flatten(0, 1), [], [], []  # S_0, U and O of each chunk
        for c in range(chunks.n):
            at = slice(c, None, chunks.n)  # this chunk of every row and head
            found.append(state)
            U = torch.baddbmm(values[at], reads[at], state, alpha=-1)
            written.append(U)
            if scores is not None and q_decayed is not None:
                out.append(torch.baddbmm(torch.bmm(q_decayed[at], state), scores[at], U))
            state = torch.baddbmm(kept[at] * state, k_decayed[at].mT, U)
        ctx.chunks = chunks
        ctx.save_for_backward(
            S, q, k, v, b, decay, D, kk, inverse, values, reads, to_end,
            k_decayed, scores, q_decayed, *written, *found,
        )  # fmt: skip
        o = chunks.join(chunks.together(out), H, out_dtype) if out else None
        return o, state.view_as(S)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        chunks: _Chunks = ctx.chunks
        saved = ctx.saved_tensors  # read once: under checkpointing a second read would fail
        S, q, k, v, b, decay, D, kk, inverse, values = saved[:10]
        reads, to_end, k_decayed, scores, q_decayed, *rest = saved[10:]
        written, found = rest[: chunks.n], rest[chunks.n :]
        kept, d_o, d_state = decay[:, -1:], gradients[0], gradients[1].flatten(0, 1)

        # The part that goes from chunk to chunk, last to first.
        d_values, d_reads, d_k_decayed = map(torch.empty_like, (values, reads, k_decayed))
        d_kept = torch.empty_like(kept)
        if q is not None:
            d_o = chunks.split(d_o, S.dtype)
            d_scores, d_q_decayed = torch.empty_like(scores), torch.empty_like(q_decayed)
        for c in reversed(range(chunks.n)):
            at, U, state = slice(c, None, chunks.n), written[c], found[c]
            d_U = torch.bmm(k_decayed[at], d_state)
            d_k_decayed[at] = torch.bmm(U, d_state.mT)
            d_kept[at] = (state * d_state).sum((1, 2), keepdim=True)
            d_state = kept[at] * d_state
            if q is not None:
                d_U = torch.baddbmm(d_U, scores[at].mT, d_o[at])
                d_scores[at] = torch.bmm(d_o[at], U.mT)
                d_q_decayed[at] = torch.bmm(d_o[at], state.mT)
                d_state = torch.baddbmm(d_state, q_decayed[at].mT, d_o[at])
            d_values[at], d_reads[at] = d_U, torch.bmm(d_U, state.mT).neg_()
            d_state = torch.baddbmm(d_state, reads[at].mT, d_U, alpha=-1)

        # The part for all chunks at once: through the inverse, then through its two arguments.
        d_bv, d_bk = torch.bmm(inverse.mT, d_values), torch.bmm(inverse.mT, d_reads)
        d_A = torch.baddbmm(torch.bmm(d_bv, values.mT), d_bk, reads.mT).neg_().tril_(-1)
        d_v = b * d_bv
        d_bk *= decay
        d_k, bk = b * d_bk, (d_bk * k).sum(-1, keepdim=True)
        d_A_kk = d_A * kk
        d_b = (d_bv * v).sum(-1, keepdim=True) + bk + d_A_kk.sum(-1, keepdim=True)
        d_logs = d_A_kk.mul_(b)  # gradient of log D
        d_G = (b * bk).squeeze(-1)
        d_kk = d_A.mul_(b).mul_(D)
        d_k = torch.baddbmm(d_k, d_kk + d_kk.mT, k)
        d_q = None
        if q is not None:
            d_logs.addcmul_(d_scores, scores)
            d_qk = d_scores.mul_(D)
            d_q = torch.baddbmm(decay * d_q_decayed, d_qk, k) * q.shape[-1] ** -0.5
            d_k = torch.baddbmm(d_k, d_qk.mT, q)
            d_G += (d_q_decayed * q_decayed).sum(-1)
        d_k.addcmul_(to_end, d_k_decayed)
        kd = (d_k_decayed * k_decayed).sum(-1)
        d_G += d_logs.sum(-1) - d_logs.sum(-2) - kd
        d_G[:, -1] += kd.sum(-1) + (kept * d_kept).flatten()
        d_log_decay = d_G.flip(-1).cumsum(-1).flip(-1)

        found_gradients = (d_q, d_k, d_v, d_log_decay, d_b.squeeze(-1))
        joined = (
            None if g is None else chunks.join(g, *like)
            for g, like in zip(found_gradients, ctx.given, strict=True)
        )
        return (*joined, d_state.view_as(S), None)
