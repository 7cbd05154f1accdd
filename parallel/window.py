"""What all blocks share within one window: rotary angles, masks, and what is kept afterwards."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from parallel.shape import BlockShape
from parallel.state import State

PRETRAINED = 8192  # context of Llama 3 before its long wavelengths were stretched
UNSTRETCHED = 4  # waves with at least so many periods in that context were not stretched


@dataclass
class Window:
    """T tokens read at once, after P keys of earlier windows and t keys of the same pass."""

    size: tuple[int, int]  # B, T
    valid: Tensor | None  # [B, T] bool, False at PAD; None: no PAD
    cos: Tensor  # [B or 1, 1, T, half] rotary angles
    sin: Tensor  # [B or 1, 1, T, half]
    # [B, 1, T, P + t + T] bool, True where a query may attend; None: plain causal
    mask: Tensor | None
    attendable: Tensor  # [B, P + t + T] bool, which of the keys are real
    keeps_keys: bool  # keys outlive this call: sliding eviction, or a pass that stays open
    keeps_tail: bool  # the pass stays open: more of its tokens come in a later call
    # called with each delta block's log decay [B, T, H]
    record_decay: Callable[[Tensor], None] | None = None


def rotary_frequency(shape: BlockShape, device: torch.device) -> Tensor:
    """Radians per position of each rotated pair of features: [half], float64.

    Frequencies of waves longer than PRETRAINED are divided by shape.rope_scaling_factor, those of
    short waves are unchanged, with a smooth transition between the two (Llama 3.1, as in
    transformers).
    """
    half = shape.rotary_dim // 2
    exponent = torch.arange(half, device=device, dtype=torch.float64) / half
    frequency = shape.rope_theta**-exponent
    if shape.rope_scaling_factor == 1:
        return frequency
    waves = PRETRAINED * frequency / (2 * math.pi)
    kept = ((waves - 1) / (UNSTRETCHED - 1)).clamp(0, 1)  # 0: divided, 1: as it is
    return frequency * (kept + (1 - kept) / shape.rope_scaling_factor)


def open_window(
    shape: BlockShape,
    state: State,
    valid: Tensor,
    *,
    has_pad: bool,
    width: int,
    sliding: bool,
    stays_open: bool = False,
) -> Window:
    """The `Window` of the next T tokens.

    Args:
        state: the memory before these tokens. valid: [B, T] bool, False at PAD.
        has_pad: whether some token is PAD; passed in to avoid a device synchronisation.
        width: L; a query sees itself and the L - 1 tokens before it.
        sliding: keys of earlier windows stay attendable and positions are absolute.
        stays_open: the pass goes on in a later call (token-by-token decoding).
    """
    T = valid.shape[1]
    earlier = state.attendable.shape[1]  # P + t
    device = valid.device
    attendable = torch.cat([state.attendable, valid], dim=1) if earlier else valid

    index = torch.arange(T, device=device) + (earlier - state.past)
    positions = state.position[:, None] + index if sliding else index[None]  # [B or 1, T]
    angle = positions[:, None, :, None] * rotary_frequency(shape, device)  # [B or 1, 1, T, half]

    mask = None
    if has_pad or earlier:
        distance = (
            torch.arange(T, device=device)[:, None]
            + earlier
            - torch.arange(earlier + T, device=device)
        )
        band = (distance >= 0) & (distance < width)  # [T, P + t + T]
        # A PAD query can at least attend to itself: its output is never read, but must be finite.
        mask = (band & attendable[:, None, :] | (distance == 0))[:, None]
    return Window(
        size=(valid.shape[0], T),
        valid=valid if has_pad else None,
        cos=angle.cos().float(),
        sin=angle.sin().float(),
        mask=mask,
        attendable=attendable,
        keeps_keys=sliding or stays_open,
        keeps_tail=stays_open,
    )
