"""Two independent gated delta rules: the paper's equations token by token, and transformers'
functions.

Both take what `parallel.delta_rule` takes: q, k [B, T, Hk, K], v [B, T, H, V], log_decay and beta
[B, T, H] and S [B, H, K, V], and give (o [B, T, H, V], S).
"""

import torch
from torch import Tensor
from transformers.models.qwen3_5 import modeling_qwen3_5 as qwen3_5

from tests.oracles.double import in_double

NAMES = ("q", "k", "v", "log_decay", "beta", "S")


def naive(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, S: Tensor
) -> tuple[Tensor, Tensor]:
    """arXiv 2605.26099, token by token:

    S_t = a_t S_{t-1} (I - b_t k_t k_t^T) + b_t v_t k_t^T,  o_t = S_t q_t / sqrt(d_k).
    """
    batch, time, heads, d_v = v.shape
    d_k = k.shape[-1]
    identity = torch.eye(d_k, dtype=S.dtype)
    outputs, states = [], []
    for b in range(batch):
        for h in range(heads):
            key_head = h // (heads // k.shape[2])
            state = S[b, h].T  # [d_v, d_k], as the paper writes it
            for t in range(time):
                key, value = k[b, t, key_head], v[b, t, h]
                state = (
                    log_decay[b, t, h].exp()
                    * state
                    @ (identity - beta[b, t, h] * torch.outer(key, key))
                )
                state = state + beta[b, t, h] * torch.outer(value, key)
                outputs.append(state @ q[b, t, key_head] / d_k**0.5)
            states.append(state.T)
    o = torch.stack(outputs).view(batch, heads, time, d_v).transpose(1, 2)
    return o, torch.stack(states).view(batch, heads, d_k, d_v)


def transformers_chunked(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, S: Tensor
) -> tuple[Tensor, Tensor]:
    """transformers' parallel form (it repeats the key heads, pads T and scales q by itself)."""
    with in_double(q.dtype == torch.float64):
        return qwen3_5.torch_chunk_gated_delta_rule(
            q, k, v, log_decay, beta, initial_state=S, output_final_state=True
        )


def transformers_recurrent(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, S: Tensor
) -> tuple[Tensor, Tensor]:
    """transformers' token-by-token form."""
    with in_double(q.dtype == torch.float64):
        return qwen3_5.torch_recurrent_gated_delta_rule(
            q, k, v, log_decay, beta, initial_state=S, output_final_state=True
        )
