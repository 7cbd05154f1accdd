"""The delta rule over a window split by tokens: what a run of tokens does to S is an affine map.

    S  ->  P S + U        P [K, K]  how S decays and is overwritten
                          U [K, V]  what is written where S was 0

Maps of consecutive runs compose, so no rank waits for another's tokens:

    1  own tokens, all heads                     (P, U): the rule from [I | 0], values [0 | v]
    2  all-to-all; all tokens, own heads         S before each rank's tokens, and after them all
    3  all-to-all back; own tokens, all heads    the rule again, from the S before them: o

The messages, [K, K + V] of each head one way and [K, V] back, do not grow with the window. S stays
split by heads, as in `parallel.context`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from parallel import mesh
from parallel.context import to_heads, to_tokens
from parallel.delta_rule import delta_rule


def merged_delta_rule(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    S: Tensor,
    chunk: int,
) -> tuple[Tensor | None, Tensor]:
    """`delta_rule` over tokens of which this rank has a share.

    Args:
        q, k, v, log_decay, beta: [B, t, ..] of its own tokens, all heads, see
            `recurrent_delta_rule`. S: [B, H / C, K, V] of its own heads, before the window.
    Returns:
        o [B, t, H, V], and S after the window [B, H / C, K, V].
    """
    (B, t, H, V), K, C = v.shape, k.shape[-1], mesh.cp_size()
    begin = torch.eye(K, K + V, dtype=S.dtype, device=S.device).expand(B, H, K, K + V)  # [I | 0]
    values = torch.cat([v.new_zeros(B, t, H, K), v], dim=-1)
    _, mine = delta_rule(None, k, values, log_decay, beta, begin, chunk)  # [B, H, K, K + V]
    # `to_heads` with ranks in place of tokens: one map per rank
    (maps,) = to_heads((B, C), mine.view(B, 1, -1))
    before = []
    for of_rank in maps.view(B, C, H // C, K, K + V).unbind(dim=1):
        before.append(S)
        P, U = of_rank.split([K, V], dim=-1)
        S = P @ S + U
    if q is None:
        return None, S
    own = to_tokens((B, C), torch.stack(before, dim=1).flatten(3))  # [B, 1, H, K * V]
    o, _ = delta_rule(q, k, v, log_decay, beta, own.view(B, H, K, V), chunk)
    return o, S
