"""What a configuration must satisfy before anything is built: each refusal names the setting and
the fix.

What a task needs to be laid out in windows is checked by the task itself (`pretrain/tasks/`).
"""

from __future__ import annotations

import dataclasses
import os
import unicodedata

from parallel.combinations import Layout, refusal
from pretrain.config.schema import Config
from pretrain.errors import UserError, shortened

# The words a setting may be.
CHOICES: dict[str, tuple[str | int, ...]] = {
    "sleep.when": ("always", "context"),
    "sleep.eviction": ("hard", "sliding"),
    "data.task": ("text", "depo", "rule110", "stories"),
    "data.documents": ("isolate", "stitch"),
    "optimizer.name": ("muon", "adamw"),
    "parallel.zero": (0, 1, 2, 3),
    "parallel.recompute": ("none", "unit", "block"),
    "train.precision": ("fp32", "bf16"),
    "guard.then": ("stop", "rollback"),
}

# The least a number may be.
AT_LEAST: dict[str, int] = {
    **dict.fromkeys(("model.d_model", "model.attention_heads", "model.attention_kv_heads"), 1),
    **dict.fromkeys(
        ("model.attention_head_dim", "model.delta_key_heads", "model.delta_value_heads"), 1
    ),
    **dict.fromkeys(("model.delta_key_dim", "model.delta_value_dim"), 1),
    "model.delta_conv_width": 2,
    **dict.fromkeys(
        ("model.delta_chunk", "model.mlp_width", "sleep.passes", "sleep.window", "data.windows"), 1
    ),
    **dict.fromkeys(
        ("depo.nodes", "depo.max_hops", "depo.context", "depo.queries", "depo.vocabulary"), 1
    ),
    **dict.fromkeys(("rule110.rings", "stories.min_ops", "stories.context"), 1),
    **dict.fromkeys(
        ("train.steps", "train.batch", "train.microbatches", "train.log_every", "train.eval_every"),
        1,
    ),
    **dict.fromkeys(
        (
            "train.eval_batches",
            "train.checkpoint_every",
            "train.keep",
            "parallel.tp",
            "parallel.pp",
        ),
        1,
    ),
    **dict.fromkeys(("guard.limit", "guard.rollbacks"), 1),
    "rule110.width": 3,  # a cell and its two neighbours
    **dict.fromkeys(
        (
            "run.seed",
            "depo.min_nodes",
            "rule110.steps",
            "model.vocab_size",
            "sleep.prelude",
            "sleep.coda",
        ),
        0,
    ),
    **dict.fromkeys(("sleep.truncate_passes", "sleep.truncate_windows", "train.keep_every"), 0),
    **dict.fromkeys(("optimizer.weight_decay", "optimizer.warmup", "optimizer.decay"), 0),
}

# The most a whole number may be: more than anyone needs, and little enough that sizes made of it
# can be computed.
MAX = 1 << 20
AT_MOST: dict[str, int] = {
    "run.seed": (1 << 63) - 1,
    "model.vocab_size": 1 << 24,
    "parallel.timeout": 1 << 30,
    **dict.fromkeys(
        ("train.steps", "train.log_every", "train.eval_every", "train.checkpoint_every"), 1 << 53
    ),
    **dict.fromkeys(
        ("train.keep", "train.keep_every", "optimizer.warmup", "optimizer.decay"), 1 << 53
    ),
    "sleep.truncate_windows": 1 << 53,
}
MAX_FLOAT = 10**15  # the product of two is a number in fp32
MAX_BLOCKS = MAX_CORPORA = 1 << 12
MAX_TOKENS = 1 << 28  # of a step, and of an evaluation: what a rank's host holds at once
WEIGHTS = (1e-6, 1e6)  # of a corpus

# Numbers that must be more than 0.
POSITIVE = (
    "model.rope_theta",
    "model.norm_eps",
    "model.embedding_std",
    "model.head_std",
    "model.init_std",
    "optimizer.muon_lr",
    "optimizer.adamw_lr",
    "optimizer.clip",
    "parallel.timeout",
)


def validate(config: Config) -> None:
    """Raises UserError at the first setting, or combination of settings, that cannot be trained."""
    for place, choices in CHOICES.items():
        if _get(config, place) not in choices:
            raise _refused(config, place, f"must be {' or '.join(_show(c) for c in choices)}")
    for place, least in AT_LEAST.items():
        if _get(config, place) < least:
            raise _refused(config, place, f"must be at least {least}")
    for place in POSITIVE:
        if _get(config, place) <= 0:
            raise _refused(config, place, "must be more than 0")
    for section in dataclasses.fields(config):
        for field in dataclasses.fields(getattr(config, section.name)):
            _check_kind(config, f"{section.name}.{field.name}")
    for check in (
        _run,
        _heads,
        _rotary,
        _decay,
        _parts,
        _truncation,
        _optimizer,
        _batches,
        _layout,
        _guard,
    ):
        check(config)
    if config.data.task in ("text", "stories") and not config.data.tokenizer:
        fix = f'name the sentencepiece model that `hypnos tokenizer train` wrote (data.task = "{config.data.task}")'
        raise _refused(config, "data.tokenizer", fix)
    if config.data.task == "text":
        _text(config)
    if config.data.task == "stories":
        _stories(config)


def _check_kind(config: Config, place: str) -> None:
    """What holds for every number and every text."""
    value: object = _get(config, place)
    if isinstance(value, int | float):
        most = AT_MOST.get(place, MAX if isinstance(value, int) else MAX_FLOAT)
        if value > most:
            raise _refused(config, place, f"must be at most {most}")
    if isinstance(value, str):
        _check_text(place, value)


def _check_text(place: str, text: str) -> None:
    """No NUL, line's end or lone surrogate: most texts become names of files, and all are shown in
    messages.
    """
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text):
        raise UserError(f"{place} = {shortened(ascii(text))}: holds a control character: remove it")


def _get(config: Config, place: str) -> int:
    section, key = place.split(".")
    return getattr(getattr(config, section), key)


def _show(value: object) -> str:
    return shortened(f'"{value}"' if isinstance(value, str) else str(value))


def _refused(config: Config, place: str, fix: str) -> UserError:
    return UserError(f"{place} = {_show(_get(config, place))}: {fix}")


def _run(config: Config) -> None:
    name = config.run.name
    if name in ("", ".", "..") or os.path.basename(name) != name:
        raise _refused(
            config,
            "run.name",
            "must be the name of a folder, without slashes; run.dir says where it is",
        )


def _heads(config: Config) -> None:
    for many, few in (
        ("attention_heads", "attention_kv_heads"),
        ("delta_value_heads", "delta_key_heads"),
    ):
        if _get(config, f"model.{many}") % _get(config, f"model.{few}"):
            raise _refused(
                config,
                f"model.{many}",
                f"must be a multiple of model.{few} = {_get(config, f'model.{few}')}",
            )


def _rotary(config: Config) -> None:
    fraction, dim = config.model.rotary_fraction, config.model.attention_head_dim
    if not 0 < fraction <= 1:
        raise _refused(config, "model.rotary_fraction", "must be more than 0 and at most 1")
    if int(dim * fraction) < 2 or int(dim * fraction) % 2:
        fix = f"rotates {int(dim * fraction)} of model.attention_head_dim = {dim}: must be an even number, at least 2"
        raise _refused(config, "model.rotary_fraction", fix)


def _decay(config: Config) -> None:
    slow, fast = config.model.decay_init
    if not 0 < slow <= fast:
        raise UserError(
            f"model.decay_init = [{slow}, {fast}]: must be two positive numbers, the smaller one first"
        )


def _parts(config: Config) -> None:
    layers, sleep = config.model.layers, config.sleep
    for number, kind in enumerate(layers):
        if kind not in ("attention", "delta"):
            raise UserError(
                f'model.layers[{number}] = {_show(kind)}: must be "attention" or "delta"'
            )
    if len(layers) > MAX_BLOCKS:
        raise UserError(f"model.layers names {len(layers)} blocks: at most {MAX_BLOCKS}")
    if not layers:
        raise UserError('model.layers = []: name at least one block, "attention" or "delta"')
    if sleep.prelude + sleep.coda > len(layers):
        raise UserError(
            f"sleep.prelude = {sleep.prelude} and sleep.coda = {sleep.coda} are more than the {len(layers)} blocks "
            "of model.layers: lower one of them"
        )
    if sleep.passes > 1 and "delta" not in layers[sleep.prelude : len(layers) - sleep.coda]:
        raise UserError(
            f'sleep.passes = {sleep.passes} needs a "delta" block between sleep.prelude and sleep.coda, for only its '
            "fast weights outlive the window: add one to model.layers, or set sleep.passes = 1"
        )


def _truncation(config: Config) -> None:
    if config.sleep.truncate_passes > config.sleep.passes:
        fix = f"must be at most sleep.passes = {config.sleep.passes}; 0 backpropagates through all"
        raise _refused(config, "sleep.truncate_passes", fix)


def _optimizer(config: Config) -> None:
    settings = config.optimizer
    if not 0 <= settings.momentum < 1:
        raise _refused(config, "optimizer.momentum", "must be at least 0 and less than 1")
    if not all(0 <= beta < 1 for beta in settings.betas):
        raise UserError(
            f"optimizer.betas = {list(settings.betas)}: each must be at least 0 and less than 1"
        )
    if not 0 <= settings.final_lr <= 1:
        raise _refused(
            config, "optimizer.final_lr", "must be from 0 to 1, a share of the peak learning rate"
        )
    if settings.warmup + settings.decay > config.train.steps:
        raise UserError(
            f"optimizer.warmup = {settings.warmup} and optimizer.decay = {settings.decay} are more than "
            f"train.steps = {config.train.steps}: lower them or train longer"
        )


def _batches(config: Config) -> None:
    sequence = _sequence(config)
    for what, batches in (("train.batch", 1), ("train.eval_batches", config.train.eval_batches)):
        if (tokens := batches * config.train.batch * sequence) > MAX_TOKENS:
            fix = f"makes {tokens} tokens, {sequence} a sequence; at most {MAX_TOKENS} are held at once: lower it"
            raise _refused(config, what, fix)
    if config.train.batch % config.train.microbatches:
        raise _refused(
            config,
            "train.batch",
            f"must be a multiple of train.microbatches = {config.train.microbatches}",
        )


def _sequence(config: Config) -> int:
    """Tokens of a training sequence, or a few more."""
    match config.data.task:
        case "depo":
            return config.depo.context + config.depo.queries * (
                2 + 2 * max(config.depo.name_tokens)
            )
        case "rule110":
            return config.rule110.rings * (config.rule110.width + 1)
        case "stories":
            return config.stories.context + config.sleep.window
        case _:
            return config.data.windows * config.sleep.window


# What tensor-parallel ranks share out evenly.
SHARED = (
    "attention_heads", "attention_kv_heads", "delta_key_heads", "delta_value_heads", "mlp_width", "vocab_size",
)  # fmt: skip


def _layout(config: Config) -> None:
    parallel, blocks = config.parallel, len(config.model.layers)
    why = refusal(
        Layout(
            parallel.tp, parallel.pp, parallel.sequence_parallel, parallel.zero, parallel.offload,
            config.train.precision, config.train.microbatches,
        )
    )  # fmt: skip
    if why:
        raise UserError(why)
    tp = parallel.tp
    for name in SHARED:  # vocab_size = 0 is filled in, and checked again, when the data are known
        size = _get(config, f"model.{name}")
        if size % tp:
            fix = f"does not divide by parallel.tp = {tp}; make it {size + -size % tp}, or lower parallel.tp"
            raise _refused(config, f"model.{name}", fix)
    if parallel.pp > blocks:
        raise _refused(
            config,
            "parallel.pp",
            f"at most one stage for each of the {blocks} blocks of model.layers",
        )
    if parallel.stages and (
        len(parallel.stages) != parallel.pp
        or sum(parallel.stages) != blocks
        or min(parallel.stages) < 1
    ):
        fix = f"must be parallel.pp = {parallel.pp} numbers of at least 1 that add up to the {blocks} blocks"
        raise UserError(
            f"parallel.stages = {_show(parallel.stages)}: {fix} of model.layers; [] balances them"
        )


def _guard(config: Config) -> None:
    if config.guard.spike < 0 or 0 < config.guard.spike <= 1:
        raise _refused(
            config,
            "guard.spike",
            "must be more than 1, so many times the running mean; 0 looks for none",
        )


def _text(config: Config) -> None:
    if not config.data.train:
        raise UserError(
            'data.train = []: name a folder that `hypnos data prepare` wrote, as [{path = "..."}]'
        )
    if len(config.data.train) > MAX_CORPORA:
        raise UserError(
            f"data.train names {len(config.data.train)} corpora: at most {MAX_CORPORA}; join some"
        )
    for number, corpus in enumerate(config.data.train):
        _check_text(f"data.train[{number}].path", corpus.path)
        if not corpus.path:
            raise UserError(
                f'data.train[{number}].path = "": name a folder that `hypnos data prepare` wrote'
            )
        if corpus.weight <= 0:
            raise UserError(
                f"data.train[{number}].weight = {corpus.weight}: must be more than 0, or leave the corpus out"
            )
        if not WEIGHTS[0] <= corpus.weight <= WEIGHTS[1]:
            raise UserError(
                f"data.train[{number}].weight = {corpus.weight}: must be from {WEIGHTS[0]} to {WEIGHTS[1]}"
            )
    if not config.data.heldout:
        raise _refused(
            config,
            "data.heldout",
            "name the folder of held-out shards that `hypnos data prepare` wrote",
        )
    if config.sleep.when == "context" and config.sleep.passes > 1:
        raise _refused(
            config,
            "sleep.when",
            'every window of text has targets, so none would sleep: use "always"',
        )


def _stories(config: Config) -> None:
    if config.stories.max_ops < config.stories.min_ops:
        fix = f"must be at least stories.min_ops = {config.stories.min_ops}"
        raise _refused(config, "stories.max_ops", fix)
