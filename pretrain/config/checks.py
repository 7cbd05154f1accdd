"""Combinations of settings that are refused before anything is built, with setting and fix.

Bounds of a single setting are in schema.py; whether a task can be laid out in windows is checked by
the task (`pretrain/tasks/`).
"""

from __future__ import annotations

import os
import re
from typing import get_args

from parallel.combinations import Layout, refusal
from pretrain.config.fields import check, refused, type_hints, values
from pretrain.config.schema import Config, DataConfig, HeldoutConfig
from pretrain.data.store import is_remote
from pretrain.errors import UserError

TASKS = get_args(type_hints(DataConfig)["task"])  # all but text have a section of their own
MAX_TOKENS = 1 << 28  # of a step, and of an evaluation, which a host must hold in memory


def validate(config: Config) -> None:
    """UserError at the first setting, or combination of settings, that is not valid."""
    check(config)
    for check_combination in (
        _run, _tasks, _heads, _rotary, _decay, _parts, _truncation, _controls, _curriculum,
        _state_passing, _update, _spike, _batches, _profile, _layout, _data,
    ):  # fmt: skip
        check_combination(config)


def _run(config: Config) -> None:
    name = config.run.name
    if name in ("", ".", "..") or os.path.basename(name) != name:
        fix = "must be the name of a folder, without slashes; run.dir says where it is"
        raise refused("run.name", name, fix)
    if config.run.init_moments and not config.run.init_from:
        raise refused("run.init_moments", True, "name the run that has them: set run.init_from")


def _tasks(config: Config) -> None:
    """Refuses settings of other tasks, which would have no effect."""
    for place, setting, value in values(config):
        task = place.partition(".")[0]
        if task in TASKS and task != config.data.task and value != setting.default:
            fix = (
                f'data.task = "{config.data.task}" does not use it: leave it out, or set data.task'
            )
            raise refused(place, value, fix)


def _profile(config: Config) -> None:
    steps = config.train.profile
    if steps and not (len(steps) == 2 and steps[0] <= steps[1]):
        raise refused("train.profile", steps, "must be a first and a last step, as [10, 12], or []")


def _heads(config: Config) -> None:
    model = config.model
    for name, many, divisor, few in (
        ("attention_heads", model.attention_heads, "attention_kv_heads", model.attention_kv_heads),
        ("delta_value_heads", model.delta_value_heads, "delta_key_heads", model.delta_key_heads),
    ):
        if many % few:
            raise refused(f"model.{name}", many, f"must be a multiple of model.{divisor} = {few}")


def _rotary(config: Config) -> None:
    model, rotated = config.model, config.model.rotary_dim
    if rotated < 2 or rotated % 2:
        what = f"rotates {rotated} of model.attention_head_dim = {model.attention_head_dim}"
        why = f"{what}: must be an even number, at least 2"
        raise refused("model.rotary_fraction", model.rotary_fraction, why)


def _decay(config: Config) -> None:
    slow, fast = config.model.decay_init
    if slow > fast:
        raise refused("model.decay_init", [slow, fast], "must have the smaller number first")


def _parts(config: Config) -> None:
    layers, sleep = config.model.layers, config.sleep
    if not layers:
        raise refused("model.layers", layers, 'name at least one block, "attention" or "delta"')
    if sleep.prelude + sleep.coda > len(layers):
        raise UserError(
            f"sleep.prelude = {sleep.prelude} and sleep.coda = {sleep.coda} are more than the "
            f"{len(layers)} blocks of model.layers: lower one of them"
        )
    if sleep.passes > 1 and "delta" not in layers[sleep.prelude : len(layers) - sleep.coda]:
        raise UserError(
            f'sleep.passes = {sleep.passes} needs a "delta" block between sleep.prelude and '
            "sleep.coda, as only fast weights outlive a window: add one to model.layers, or "
            "set sleep.passes = 1"
        )


def _truncation(config: Config) -> None:
    passes, last = config.sleep.passes, config.sleep.truncate_passes
    if last > passes:
        fix = f"must be at most sleep.passes = {passes}; 0 backpropagates through all"
        raise refused("sleep.truncate_passes", last, fix)


def _controls(config: Config) -> None:
    sleep, data = config.sleep, config.data
    if sleep.min_passes > sleep.passes:
        fix = f"must be at most sleep.passes = {sleep.passes}; 0: N is always sleep.passes"
        raise refused("sleep.min_passes", sleep.min_passes, fix)
    for place, value, usual in (
        ("sleep.when", sleep.when, sleep.when != "awake"),
        ("sleep.carries", sleep.carries, sleep.carries == "both"),
    ):
        if not usual and config.parallel.pp > 1:
            fix = "this control cannot run with pipeline stages: set parallel.pp = 1"
            raise refused(place, value, fix)
    if sleep.carries == "S" and sleep.prelude:
        fix = (
            "begins each pass with the embedding, so no block may come first: set sleep.prelude = 0"
        )
        raise refused("sleep.carries", sleep.carries, fix)
    if sleep.eviction == "none" and data.task == "text" and data.carry:
        fix = "would keep the keys of whole documents: set data.carry = false"
        raise refused("sleep.eviction", sleep.eviction, fix)
    if data.repeats > 1 and data.task in ("text", "questions"):
        fix = "repeats the context of a generated task: set it to 1"
        raise refused("data.repeats", data.repeats, fix)
    if sleep.window % data.repeats:
        fix = f"must be a multiple of data.repeats = {data.repeats}, copies of a window each"
        raise refused("sleep.window", sleep.window, fix)


def _curriculum(config: Config) -> None:
    data = config.data
    if data.curriculum and data.task not in ("depo", "rule110", "stories", "recall"):
        fix = f'data.task = "{data.task}" has no depth that could be raised: set it to 0'
        raise refused("data.curriculum", data.curriculum, fix)
    if data.curriculum and data.task == "rule110" and config.rule110.min_steps:
        fix = "with rule110.min_steps each row asks for all depths: set one of the two to 0"
        raise refused("data.curriculum", data.curriculum, fix)


def _state_passing(config: Config) -> None:
    data = config.data
    if data.state_passing and data.task == "text":
        fix = 'is for tasks: set it to 0; for text use data.carry or data.documents = "stitch"'
        raise refused("data.state_passing", data.state_passing, fix)
    if data.state_passing and config.sleep.slides:
        fix = 'would also pass on keys: set sleep.eviction = "hard"'
        raise refused("data.state_passing", data.state_passing, fix)


def _update(config: Config) -> None:
    if config.optimizer.update == "delta" and "delta" not in config.model.layers:
        fix = 'model.layers has no delta-rule block that could learn: set it to "all"'
        raise refused("optimizer.update", "delta", fix)


def _spike(config: Config) -> None:
    if 0 < config.guard.spike <= 1:
        fix = "must be more than 1 (times the running mean), or 0 to look for no spikes"
        raise refused("guard.spike", config.guard.spike, fix)


def _batches(config: Config) -> None:
    train, sequence = config.train, _sequence(config)
    for what, value, sequences in (
        ("train.batch", train.batch, train.batch),
        ("train.eval_batches", train.eval_batches, train.eval_batches * train.batch),
    ):
        if (tokens := sequences * sequence) > MAX_TOKENS:
            raise refused(
                what,
                value,
                f"makes {tokens} tokens, {sequence} per sequence; at most {MAX_TOKENS} are "
                "allowed: lower it",
            )
    if train.batch % train.microbatches:
        fix = f"must be a multiple of train.microbatches = {train.microbatches}"
        raise refused("train.batch", train.batch, fix)


def _sequence(config: Config) -> int:
    """An upper estimate of the tokens of a training sequence."""
    return config.data.repeats * _once(config)


def _once(config: Config) -> int:
    match config.data.task:
        case "depo":
            query = 2 + 2 * max(config.depo.name_tokens)
            return config.depo.context + config.depo.queries * query
        case "rule110":
            rule = config.rule110
            questions = rule.steps - rule.min_steps + 1 if rule.min_steps else 1
            return rule.rings * (rule.width + max(1, questions))
        case "stories":
            return config.stories.context + config.sleep.window
        case "questions":
            return config.questions.context + config.questions.answer
        case "mqar":
            return 2 * config.mqar.pairs + config.mqar.queries
        case "s5":
            return 2 * config.s5.length
        case "brevo":
            return config.brevo.context + config.brevo.nodes + 2
        case "recall":
            return config.recall.context + config.sleep.window
        case "text":
            return config.data.windows * config.sleep.window


# Sizes that tensor-parallel ranks must split evenly.
SHARED = (
    "attention_heads", "attention_kv_heads", "delta_key_heads", "delta_value_heads", "mlp_width",
    "vocab_size",  # 0 is filled in and checked again once the data are known
)  # fmt: skip


def layout_of(config: Config) -> Layout:
    """The rank layout that a configuration asks for."""
    parallel = config.parallel
    return Layout(
        tp=parallel.tp, pp=parallel.pp, sequence_parallel=parallel.sequence_parallel,
        zero=parallel.zero, offload=parallel.offload, precision=config.train.precision,
        microbatches=config.train.microbatches, recompute=parallel.recompute,
        cuda_graphs=parallel.cuda_graphs, cp=parallel.cp, cp_delta=parallel.cp_delta,
    )  # fmt: skip


def check_ranks(config: Config, ranks: int) -> None:
    """UserError if `ranks` ranks do not fit the layout, or cannot have equal microbatches."""
    x = layout_of(config)
    if ranks % (grid := x.tp * x.cp * x.pp):
        raise UserError(
            f"{ranks} ranks are not divisible by parallel.tp = {x.tp} x parallel.cp = {x.cp} x "
            f"parallel.pp = {x.pp}; make them a multiple of {grid}, or lower these"
        )
    check_rows(config, ranks // grid)


def check_rows(config: Config, dp: int) -> None:
    """UserError if `dp` data-parallel ranks cannot have equal microbatches."""
    share = dp * config.train.microbatches
    if config.train.batch % share:
        raise UserError(
            f"train.batch = {config.train.batch} is not divisible by {dp} data-parallel "
            f"ranks x train.microbatches = {config.train.microbatches}; "
            f"make it a multiple of {share}"
        )


def _layout(config: Config) -> None:
    parallel = config.parallel
    if why := refusal(layout_of(config)):
        raise UserError(why)
    for name in SHARED:
        size, tp = getattr(config.model, name), parallel.tp
        if size % tp:
            more = f"make it {size + -size % tp}, or lower parallel.tp"
            raise refused(f"model.{name}", size, f"is not divisible by parallel.tp = {tp}; {more}")
        if name.endswith("_heads") and size % (tp * parallel.cp):
            by = f"parallel.tp = {tp} x parallel.cp = {parallel.cp}"
            fix = f"make it a multiple of {tp * parallel.cp}, or lower parallel.cp"
            raise refused(f"model.{name}", size, f"is not divisible by {by}; {fix}")
    _stages(config)


def _stages(config: Config) -> None:
    pp, stages, blocks = config.parallel.pp, config.parallel.stages, len(config.model.layers)
    if pp > blocks:
        fix = f"at most one stage for each of the {blocks} blocks of model.layers"
        raise refused("parallel.pp", pp, fix)
    if stages and (len(stages) != pp or sum(stages) != blocks):
        fix = f"must be parallel.pp = {pp} numbers that add up to the {blocks} blocks"
        raise refused("parallel.stages", stages, f"{fix} of model.layers; [] balances them")


def uses_tokenizer(config: Config) -> bool:
    """Whether the data are texts; other tasks do not use data.tokenizer."""
    return config.data.task in ("text", "questions", "stories", "recall")


def _data(config: Config) -> None:
    data = config.data
    if uses_tokenizer(config) and not data.tokenizer:
        fix = "name the file that `hypnos tokenizer train` wrote, or a folder with a tokenizer.json"
        raise refused("data.tokenizer", "", f'{fix} (data.task = "{data.task}")')
    if data.task == "text":
        _text(config)
    if data.task == "questions" and not config.questions.path:
        fix = "name a .jsonl file with the fields context, question and answer"
        raise refused("questions.path", "", fix)
    if data.task == "stories" and config.stories.max_ops < config.stories.min_ops:
        fix = f"must be at least stories.min_ops = {config.stories.min_ops}"
        raise refused("stories.max_ops", config.stories.max_ops, fix)


def _heldout_sets(sets: list[HeldoutConfig]) -> None:
    names = [each.name for each in sets]
    for number, each in enumerate(sets):
        place = f"data.heldout_sets[{number}].name"
        if not re.fullmatch(r"[\w-]+", each.name, re.ASCII):
            raise refused(place, each.name, "may hold letters, digits, _ and - only")
        if each.name in names[:number]:
            raise refused(place, each.name, "is also the name of another set: choose another")


def _text(config: Config) -> None:
    written = "that `hypnos data prepare` wrote"
    if not config.data.train:
        raise refused("data.train", [], f'name a folder {written}, as [{{path = "..."}}]')
    for number, corpus in enumerate(config.data.train):
        if not corpus.path:
            raise refused(f"data.train[{number}].path", "", f"name a folder {written}")
    for place, path in config.data.heldout_paths().items():
        if not path:
            raise refused(place, "", f"name the folder of held-out shards {written}")
    _heldout_sets(config.data.heldout_sets)
    places = [
        *(corpus.path for corpus in config.data.train), *config.data.heldout_paths().values()
    ]  # fmt: skip
    if any(map(is_remote, places)) and config.data.retry >= config.parallel.timeout:
        limit = config.parallel.timeout
        fix = f"must be less than parallel.timeout = {limit:g}, or a store that fails ends the job"
        raise refused("data.retry", config.data.retry, fix)
    if config.sleep.when == "context" and config.sleep.passes > 1:
        fix = 'every window of text has targets, so none would sleep: use "always"'
        raise refused("sleep.when", "context", fix)
