"""Prepares a run, and checks its configuration against data, ranks and memory before building."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext

from parallel import mesh, watchdog
from parallel.context import token_counts
from parallel.stages import Stage
from pretrain.config.checks import validate
from pretrain.config.memory import check_memory
from pretrain.config.schema import Config, ParallelConfig
from pretrain.data.source import BatchSource
from pretrain.data.store import is_remote
from pretrain.data.stream import TextStream
from pretrain.errors import UserError
from pretrain.model.flops import stage_bounds
from pretrain.tasks import TaskSource, make_task


def lay_grid(parallel: ParallelConfig) -> None:
    """Builds the process grid. UserError: the number of ranks does not fit, or a GPU is missing."""
    if parallel.cuda_graphs and mesh.device().type != "cuda":
        raise UserError("parallel.cuda_graphs = true: there is no CUDA device here; leave it out")
    tp, cp, pp = parallel.tp, parallel.cp, parallel.pp
    try:
        mesh.initialize(
            tp, pp, parallel.sequence_parallel, parallel.timeout,
            cp=cp, delta_by_tokens=parallel.cp_delta == "tokens",
        )  # fmt: skip
    except ValueError as error:
        start = f"torchrun --nproc-per-node={tp * cp * pp} -m launch train ..."
        fix = f"start a multiple of tp x cp x pp ranks, e.g. {start}"
        grid = f"parallel.tp = {tp}, parallel.cp = {cp}, parallel.pp = {pp}"
        raise UserError(f"{grid}: {error}; {fix}") from None


def make_source(config: Config) -> BatchSource:
    """The stream of this rank's batches that data.task names."""
    window, batch, seed = config.sleep.window, config.train.batch, config.run.seed
    rank, ranks = mesh.dp_rank(), mesh.dp_size()
    if config.data.task == "text":
        checks = mesh.is_first_on_host()
        stored = any(is_remote(corpus.path) for corpus in config.data.train)
        # a store has its own time limit, and as long as it answers it may be slow
        with watchdog.no_timeout("opening the data") if stored else nullcontext():
            return TextStream(
                config.data, window, batch, seed, rank=rank, ranks=ranks, checks=checks
            )
    return TaskSource(
        make_task(config, window), batch, seed, rank=rank, ranks=ranks,
        curriculum=config.data.curriculum, state_passing=config.data.state_passing,
    )  # fmt: skip


def make_stage(config: Config) -> Stage:
    """This rank's pipeline stage: by parallel.stages, or balanced by FLOPs."""
    return Stage(mesh.pp_rank(), stage_bounds(config, mesh.pp_size()))


def resolve(config: Config, source: BatchSource) -> Config:
    """The configuration with everything filled in, checked against the data and this machine."""
    vocab_size = config.model.vocab_size or source.vocab_size
    if vocab_size < source.vocab_size:
        raise UserError(
            f"model.vocab_size = {vocab_size} is less than the {source.vocab_size} tokens of the "
            "data; raise it, or leave it out to use the data's"
        )
    model = dataclasses.replace(config.model, vocab_size=vocab_size)
    config = dataclasses.replace(config, model=model)
    validate(config)  # now that the vocabulary is known
    check_memory(config)
    return config


def check_tokens_divide(tokens: int, config: Config) -> None:
    """Checks that tp and cp ranks can split every window of a microbatch. tokens: per row."""
    L, tp, cp = config.sleep.window, config.parallel.tp, config.parallel.cp
    rows = config.train.batch // mesh.dp_size() // config.train.microbatches
    for width in {min(L, tokens), tokens % L or L}:
        if width < cp:
            raise UserError(
                f"parallel.cp = {cp}: a sequence has a window of {width} tokens, fewer than the "
                "ranks that share it; lower parallel.cp, or change sleep.window"
            )
        own = set(token_counts(width)) if config.parallel.sequence_parallel else set()
        if any(rows * width % tp for width in own):
            raise UserError(
                f"parallel.sequence_parallel: a microbatch has windows of {rows} x {width} tokens"
                f"{f' on {cp} context-parallel ranks' * (cp > 1)}, "
                f"which parallel.tp = {tp} does not divide; "
                "change train.microbatches or sleep.window, or leave parallel.sequence_parallel out"
            )
