"""Parameter and FLOP counts, from the configuration and a batch's plan, without running the model.

Only matrix multiplications count, 2 FLOPs per multiply-add; elementwise work (norms, gates, the
short convolution) and the triangular solve of the delta rule do not. Attention counts over the
whole window, as dense kernels compute it, not its causal half. A backward costs twice the forward
that it goes through. Recomputation of activations does not count, as in the usual definition of
model FLOPs utilisation (Chowdhery et al., "PaLM", 2022, appendix B).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import accumulate

from parallel.stages import Stage, balanced
from pretrain.config.schema import Config, ModelConfig, SleepConfig
from pretrain.data.batch import Batch
from pretrain.model.plan import plan_passes, plan_windows


def block_forward(
    config: ModelConfig, kind: str, tokens: int, past: int = 0, write_only: bool = False
) -> float:
    """FLOPs per token of one block's forward.

    Args:
        tokens: read in one pass. past: earlier tokens whose keys can still be attended to.
        write_only: only the state is updated, see `parallel.block.Block`.
    """
    D, mlp = config.d_model, 6 * config.d_model * config.mlp_width
    if kind == "attention":
        heads, kv, dim = (
            config.attention_heads,
            config.attention_kv_heads,
            config.attention_head_dim,
        )
        keys_and_values = 4 * D * kv * dim
        if write_only:
            return keys_and_values
        return keys_and_values + 6 * D * heads * dim + 4 * heads * dim * (tokens + past) + mlp
    heads, keys, values = config.delta_value_heads, config.delta_keys, config.delta_values
    linears: float = 2 * D * (keys + values + 2 * heads)
    if not write_only:
        linears += 2 * D * (keys + 2 * values) + mlp
    return linears + delta_rule_forward(config, tokens, write_only)


def delta_rule_forward(config: ModelConfig, tokens: int, write_only: bool = False) -> float:
    """FLOPs per token of the delta rule in a block's forward; arguments as `block_forward`."""
    heads, K, V = config.delta_value_heads, config.delta_key_dim, config.delta_value_dim
    C = min(config.delta_chunk, tokens)
    padded = -(-tokens // C) * C / tokens
    write = heads * (2 * C * K + 4 * K * V) * padded  # k k'; reads S, k U
    read = heads * (2 * C * K + 2 * C * V + 2 * K * V) * padded  # q k'; scores U, q S
    return write if write_only else write + read


def block_costs(config: ModelConfig, sleep: SleepConfig) -> list[float]:
    """FLOPs per token of each block in a window that sleeps and is scored; the head's are added to
    the last block's.
    """
    last = len(config.layers) - sleep.coda
    passes = [sleep.passes if sleep.prelude <= b < last else 1 for b in range(len(config.layers))]
    costs = [
        n * block_forward(config, kind, sleep.window)
        for n, kind in zip(passes, config.layers, strict=True)
    ]
    costs[-1] += 2 * config.d_model * config.vocab_size
    return costs


def stage_bounds(config: Config, pp: int) -> tuple[int, ...]:
    """The bounds of pp stages, see `parallel.stages.Stage`: as parallel.stages says, or as balanced
    as whole blocks allow.
    """
    given = config.parallel.stages
    if len(given) == pp:
        return tuple(accumulate(given, initial=0))
    return balanced(block_costs(config.model, config.sleep), pp)


def block_matrices(config: ModelConfig, kind: str) -> list[tuple[int, int]]:
    """The shapes of a block's linear weights, as (outputs, inputs)."""
    D, F, H = config.d_model, config.mlp_width, config.delta_value_heads
    keys, values = config.delta_keys, config.delta_values
    if kind == "attention":
        queries = config.attention_heads * config.attention_head_dim
        kv = config.attention_kv_heads * config.attention_head_dim
        mixer = [(queries, D), (queries, D), (kv, D), (kv, D), (D, queries)]
    else:
        mixer = [(keys, D), (keys, D), (values, D), (values, D), (H, D), (H, D), (D, values)]
    return [*mixer, (F, D), (F, D), (D, F)]


def block_parameters(config: ModelConfig, kind: str) -> int:
    """How many parameters one block has."""
    matrices = sum(rows * columns for rows, columns in block_matrices(config, kind))
    if kind == "attention":
        rest = 2 * config.attention_head_dim if config.attention_qk_norm else 0
        if config.attention_qkv_bias:
            heads = config.attention_heads + 2 * config.attention_kv_heads
            rest += heads * config.attention_head_dim
    else:
        channels = 2 * config.delta_keys + config.delta_values
        heads, V = config.delta_value_heads, config.delta_value_dim
        rest = channels * config.delta_conv_width + 2 * heads + V
    return matrices + rest + 2 * config.d_model  # the last: two norms


def parameters(config: ModelConfig) -> int:
    """How many parameters the model has."""
    vocabulary = config.d_model * config.vocab_size * (1 if config.tie_embeddings else 2)
    blocks = sum(block_parameters(config, kind) for kind in config.layers)
    return vocabulary + blocks + config.d_model


@dataclass
class Work:
    """The work of a training step on a batch."""

    wake: float = 0.0  # tokens read in pass 1
    sleep: float = 0.0  # tokens times passes 2..N over them
    forward: float = 0.0  # FLOPs
    backward: float = 0.0  # FLOPs

    @property
    def flops(self) -> float:
        """FLOPs of forward and backward together."""
        return self.forward + self.backward


def step_flops(
    batch: Batch, config: ModelConfig, sleep: SleepConfig, steps: Mapping[int, int] | None = None
) -> Work:
    """Counts what `pretrain.model.sleep` will do, pass by pass of every window. Runs on the host.

    Args:
        steps: for each N, how many steps make N passes; the result is the mean over these steps.
            None: all make sleep.passes.
    """
    steps = steps or {sleep.passes: 1}
    mean, total = Work(), sum(steps.values())
    for n, count in steps.items():
        work, share = _step_flops(batch, config, sleep, n), count / total
        for each in fields(Work):
            so_far = getattr(mean, each.name)
            setattr(mean, each.name, so_far + share * getattr(work, each.name))
    return mean


def _step_flops(batch: Batch, config: ModelConfig, sleep: SleepConfig, passes: int) -> Work:
    done, B = Work(), batch.size[0]

    def add(flops: float, has_grad: bool) -> None:
        done.forward += flops
        done.backward += 2 * flops * has_grad

    for w in plan_windows(batch, sleep, passes=passes):
        for p in plan_passes(w, config, sleep, Stage.only(len(config.layers))):
            for b in p.blocks:
                per_token = block_forward(
                    config, config.layers[b], w.width, w.past, write_only=b == p.write_only
                )
                add(per_token * B * w.width, p.core_has_grad if b in p.core else w.has_grad)
        add(2 * config.d_model * config.vocab_size * len(w.scored_index), w.has_grad)
        done.wake += B * w.width
        done.sleep += (w.n_passes - 1) * w.width * int(w.sleeps.sum())
    return done
