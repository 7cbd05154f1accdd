"""The sleep loop written a second time, on transformers' Qwen3.5 layers.

Rows are read one by one with PAD removed, every pass is computed in full, and autograd sees
everything: slow, plain, and sharing no code with `pretrain/model/sleep.py` or `parallel/`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Qwen3_5ForCausalLM

from pretrain.config.schema import SleepConfig
from pretrain.data.batch import Batch
from tests.oracles.double import in_double


class Memory:
    """A cache in the sense of transformers: S is assigned, not updated in place; convolutions start
    from zero; keys of the past.
    """

    def __init__(self) -> None:
        self.S: dict[int, Tensor] = {}
        self.past: dict[int, tuple[Tensor, Tensor]] = {}
        self.now: dict[int, tuple[Tensor, Tensor]] = {}
        self.read = 0  # tokens of the document in earlier windows

    def get_conv_state(self, layer: int, state_idx: int) -> None:
        return None

    def update_conv_state(self, x: Tensor, layer: int, conv_kernel_size: int) -> Tensor:
        return x

    def get_recurrent_state(self, layer: int, state_idx: int) -> Tensor | None:
        return self.S.get(layer)

    def update_recurrent_state(self, S: Tensor, layer: int) -> None:
        self.S[layer] = S

    def update(self, k: Tensor, v: Tensor, layer: int, **_: object) -> tuple[Tensor, Tensor]:
        if layer in self.past:
            k, v = (
                torch.cat([self.past[layer][0], k], dim=2),
                torch.cat([self.past[layer][1], v], dim=2),
            )
        self.now[layer] = (k, v)
        return k, v

    def close_window(self, keep: int, tokens: int) -> None:
        self.past = (
            {i: (k[:, :, -keep:], v[:, :, -keep:]) for i, (k, v) in self.now.items()}
            if keep
            else {}
        )
        self.now, self.read = {}, self.read + tokens

    def detach(self, layers: range) -> None:
        self.S = {i: S.detach() if i in layers else S for i, S in self.S.items()}
        self.past = {
            i: (k.detach(), v.detach()) if i in layers else (k, v)
            for i, (k, v) in self.past.items()
        }


def run_layers(
    qwen: Qwen3_5ForCausalLM, layers: range, h: Tensor, memory: Memory, sleep: SleepConfig
) -> Tensor:
    """Runs some layers, for one pass over one window. h: [1, T, D]."""
    T = h.shape[1]
    first = 0 if sleep.eviction == "hard" else memory.read
    past = next(iter(memory.past.values()))[0].shape[2] if memory.past else 0
    query, key = torch.arange(first, first + T), torch.arange(first - past, first + T)
    distance = query[:, None] - key[None]
    evicted = torch.zeros(()) if sleep.eviction == "none" else distance >= sleep.window
    mask = torch.zeros(T, past + T, dtype=h.dtype).masked_fill(
        (distance < 0) | evicted.bool(), -torch.inf
    )
    angles = qwen.model.rotary_emb(h, query[None])
    for i in layers:
        attends = qwen.config.layer_types[i] == "full_attention"
        seen = mask[None, None] if attends else None
        h = qwen.model.layers[i](h, angles, seen, None, memory)  # the last has had several names
    return h


def read(qwen: Qwen3_5ForCausalLM, batch: Batch, sleep: SleepConfig) -> tuple[Tensor, list[Memory]]:
    """Summed loss of each row and window [B, W], and each row's memory at its end."""
    with in_double(qwen.dtype == torch.float64):
        rows = [read_row(qwen, batch.rows(b, b + 1), sleep) for b in range(batch.size[0])]
    return torch.stack([losses for losses, _ in rows]), [memory for _, memory in rows]


def read_row(qwen: Qwen3_5ForCausalLM, row: Batch, sleep: SleepConfig) -> tuple[Tensor, Memory]:
    """For one row, given as a batch of one: the loss of each window [W] and its memory."""
    layers, L, W = qwen.config.num_hidden_layers, sleep.window, row.starts.shape[1]
    prelude, coda = range(sleep.prelude), range(layers - sleep.coda, layers)
    core = range(sleep.prelude, layers - sleep.coda)
    losses, memory = [], Memory()
    for w in range(W):
        if row.starts[0, w]:
            memory = Memory()
        if sleep.truncate_windows and w > 0 and (W - w) % sleep.truncate_windows == 0:
            memory.detach(range(layers))
        real = row.valid[:, w * L : (w + 1) * L]
        tokens, targets = (
            row.tokens[:, w * L : (w + 1) * L][real],
            row.targets[:, w * L : (w + 1) * L][real],
        )
        losses.append(torch.zeros((), dtype=qwen.dtype))
        if not len(tokens):
            continue
        predicts, last = bool((targets >= 0).any()), w == W - 1
        sleeps = (sleep.when == "always" or not predicts) and (not last or bool(row.carries[0]))
        sleeps, found = sleeps or sleep.when == "awake", dict(memory.S)
        if 0 < sleep.truncate_passes < sleep.passes:
            found = {i: S.detach() for i, S in found.items()}

        h = run_layers(qwen, prelude, qwen.model.embed_tokens(tokens)[None], memory, sleep)
        h = run_layers(qwen, core, h, memory, sleep)
        if predicts and sleep.when != "awake":
            y = run_layers(qwen, coda, h, memory, sleep)
            logits = qwen.lm_head(qwen.model.norm(y))[0]
            losses[-1] = F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
        for done in range(1, sleep.passes if sleeps else 1):
            if sleep.truncate_passes and done == sleep.passes - sleep.truncate_passes:
                h = h.detach()
                memory.detach(core)
            if sleep.carries == "h":
                kept = {i: S for i, S in memory.S.items() if i not in core}
                memory.S = kept | {i: S for i, S in found.items() if i in core}
            if sleep.carries == "S":
                h = qwen.model.embed_tokens(tokens)[None]
            h = run_layers(qwen, core, h, memory, sleep)
        if predicts and sleep.when == "awake":
            h = run_layers(qwen, coda, h, memory, sleep)
            logits = qwen.lm_head(qwen.model.norm(h))[0]
            losses[-1] = F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
        if not predicts:
            run_layers(qwen, coda, h, memory, sleep)
        keep = {"sliding": L - 1, "none": memory.read + len(tokens), "hard": 0}[sleep.eviction]
        memory.close_window(keep, len(tokens))
    return torch.stack(losses), memory
