"""The gated delta rule: the learned local rule by which a block writes its fast weights.

Per head, with key k_t and query q_t of unit length, value v_t, decay a_t = exp(g_t) <= 1 and
write strength b_t in (0, 1), or (0, 2), the state S [K, V] (the paper's is its transpose) follows

    S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T          o_t = S_t^T q_t / sqrt(K)

(Lee et al., "Do Language Models Need Sleep?", arXiv 2605.26099; Yang et al., "Gated Delta
Networks", arXiv 2412.06464). Three forms compute it: `recurrent_delta_rule`, token by token, the
definition; `chunked_delta_rule`, exact and parallel inside chunks of C tokens; and
flash-linear-attention's kernel on CUDA. All take an initial S, return the final one, and are
differentiable with respect to both.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from parallel import hopper
from parallel.chunked_delta_rule import ChunkedDeltaRule
from parallel.norms import at_least_fp32


def _grouped(x: Tensor, heads: int) -> Tensor:
    """Repeats each key head for the consecutive value heads it serves: [B, T, Hk, K] -> [B, T, H,
    K].
    """
    return x if x.shape[2] == heads else x.repeat_interleave(heads // x.shape[2], dim=2)


def recurrent_delta_rule(
    q: Tensor | None, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, S: Tensor
) -> tuple[Tensor | None, Tensor]:
    """The definition, token by token. Used for decoding, and as the reference for the other forms.

    Args:
        q, k: [B, T, Hk, K], L2-normalised; q None: S is written but nothing is read.
        v: [B, T, H, V], H a multiple of Hk. log_decay, beta: [B, T, H]. S: [B, H, K, V] in at least
            fp32.
    Returns:
        o [B, T, H, V] in v's dtype (None without q), and the state after the last token [B, H, K,
        V].
    """
    dtype, heads = v.dtype, v.shape[2]
    k, v, beta = _grouped(k, heads).to(S.dtype), v.to(S.dtype), beta.to(S.dtype)
    decay = log_decay.to(S.dtype).exp()
    q = None if q is None else _grouped(q, heads).to(S.dtype) * q.shape[-1] ** -0.5
    out = []
    for t in range(k.shape[1]):
        S = S * decay[:, t, :, None, None]
        held = torch.einsum("bhk,bhkv->bhv", k[:, t], S)  # what S already returns for k_t
        write = beta[:, t, :, None] * (v[:, t] - held)
        S = S + k[:, t, :, :, None] * write[:, :, None, :]
        if q is not None:
            out.append(torch.einsum("bhk,bhkv->bhv", q[:, t], S))
    return torch.stack(out, dim=1).to(dtype) if out else None, S


def chunked_delta_rule(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    S: Tensor,
    chunk: int = 64,
) -> tuple[Tensor | None, Tensor]:
    """The same result, parallel within chunks of C tokens.

    Arguments and results are those of `recurrent_delta_rule`; see `parallel.chunked_delta_rule`.
    """
    o, S = ChunkedDeltaRule.apply(q, k, v, log_decay, beta, S, chunk)
    return o, S


def delta_rule(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    S: Tensor,
    chunk: int = 64,
) -> tuple[Tensor | None, Tensor]:
    """The fastest exact form for these inputs; arguments and results as `recurrent_delta_rule`.

    A single token takes the recurrence; half precision on CUDA takes flash-linear-attention's
    kernel when it is installed; everything else takes the chunked form.
    """
    if k.shape[1] == 1:
        return recurrent_delta_rule(q, k, v, log_decay, beta, S)
    if has_kernel(v):
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule

        hopper.register()
        k = k.to(v.dtype)  # the kernel takes grouped heads, without repeating them
        o, S = chunk_gated_delta_rule(
            k if q is None else q.to(v.dtype), k, v, at_least_fp32(log_decay), beta,
            initial_state=S, output_final_state=True,
        )  # fmt: skip
        return None if q is None else o, S
    return chunked_delta_rule(q, k, v, log_decay, beta, S, chunk)


def has_kernel(x: Tensor) -> bool:
    """Whether flash-linear-attention's kernels apply: x on CUDA in bf16 or fp16, fla installed."""
    half = x.dtype in (torch.bfloat16, torch.float16)
    return x.is_cuda and half and importlib.util.find_spec("fla") is not None
