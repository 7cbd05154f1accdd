"""Metrics of a logging step, over all ranks: loss by window, throughput."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from parallel import mesh
from pretrain.config.schema import Config
from pretrain.data.batch import IGNORE, Batch
from pretrain.data.source import BatchSource
from pretrain.logged import Row
from pretrain.model.draw import draw_passes
from pretrain.model.flops import step_flops
from pretrain.run.peak import peak


def loss_by_window(window_losses: Sequence[Tensor], batch: Batch, window: int) -> Row:
    """Loss per scored token, over all ranks: of the step, and by window (None: nothing is scored).

    Args:
        window_losses: of each microbatch [W], over this rank's tokens; zeros on all pipeline stages
            but the last.
        batch: this rank's, with W windows of `window` tokens (the last may be shorter).
    """
    W, T = batch.starts.shape[1], batch.size[1]
    scored_mask = F.pad(batch.targets != IGNORE, (0, W * window - T)).view(-1, W, window)
    sums = torch.stack(list(window_losses)).sum(dim=0).double()  # [W]
    both = torch.stack([sums, scored_mask.sum(dim=(0, 2)).to(sums.device)])  # [2, W]
    dist.all_reduce(both, group=mesh.dp_group())
    for group in (mesh.cp_group(), mesh.pp_group()):
        dist.all_reduce(both[0], group=group)
    by_window = [s / n if n else None for s, n in zip(*both.tolist(), strict=True)]
    total, count = both.sum(dim=1).tolist()
    return {"loss": total / count, "loss_per_window": by_window}


class Throughput:
    """How fast training has been since the last logging step, without evaluations and saves."""

    def __init__(self, config: Config, source: BatchSource, step: int, tokens: int) -> None:
        self._config, self._source = config, source
        self._peak = peak(mesh.device())
        self._step, self._tokens, self._waited = step, tokens, source.wait_seconds
        self._begin, self._pause = time.perf_counter(), 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, time does not count as training time."""
        begin = time.perf_counter()
        yield
        self._pause += time.perf_counter() - begin

    def rates(self, step: int, tokens: int, batch: Batch) -> dict[str, float | None]:
        """The rates up to this step, over all ranks.

        Token-passes and FLOPs are those of this data-parallel rank's `batch`, assumed for all
        batches since the last call. MFU is relative to the device's dense bf16 peak (on a CPU, to
        its measured fp32 rate).
        """
        seconds = time.perf_counter() - self._begin - self._pause
        steps = Counter(draw_passes(self._config, s) for s in range(self._step, step))
        done = step_flops(batch, self._config.model, self._config.sleep, steps)
        scale = (step - self._step) * mesh.dp_size() / seconds
        flops = done.flops * scale
        rates = {
            "tokens_per_s": (tokens - self._tokens) / seconds,
            "wake_tokens_per_s": done.wake * scale,
            "sleep_tokens_per_s": done.sleep * scale,
            "flops_per_s": flops,
            "mfu": flops / mesh.world_size() / self._peak if self._peak else None,
            "data_wait_s": self._source.wait_seconds - self._waited,
        }
        self._step, self._tokens, self._waited = step, tokens, self._source.wait_seconds
        self._begin, self._pause = time.perf_counter(), 0.0
        return rates
