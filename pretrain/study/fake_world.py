"""Builds the stages of a layout as its ranks would, in a fake world and without memory.

Torch's fake process group stands in for the other ranks: collectives return at once. Parameters are
on the meta device. Of stages with the same kinds of blocks, only one is built. `parallel.simulator`
simulates the schedule, which proves that it can be executed.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from parallel import mesh
from parallel.schedule import step_schedule
from parallel.simulator import simulate
from parallel.stages import Stage
from pretrain.config.checks import check_ranks, layout_of, validate
from pretrain.config.schema import Config
from pretrain.errors import UserError
from pretrain.model.plan import plan_windows
from pretrain.model.sleep import SleepLM
from pretrain.run.prepare import check_tokens_divide
from pretrain.study.estimate import Estimator, example
from pretrain.study.hardware import GIB, Hardware
from pretrain.study.stage_units import StageUnits


def build_stages(config: Config, gpus: int, hardware: Hardware) -> Iterator[str]:
    """Builds what the ranks hold; yields lines about it.

    Args:
        config: with the layout and its vocabulary. This process must not be in a world yet.
    Raises:
        UserError: ranks, rows, tokens or sizes do not divide, or memory does not suffice.
    """
    validate(config)
    check_ranks(config, gpus)
    row, pp = example(config), config.parallel.pp
    estimator = Estimator(config, gpus, hardware, row)
    units = StageUnits(config, pp, plan_windows(row, config.sleep))
    if pp > 1:
        yield _simulated(config, units)
    counted = estimator.parameters(config.parallel.tp, pp)
    done: set[tuple[object, ...]] = set()
    for s, (first, last) in enumerate(pairwise(units.bounds)):
        alike = tuple(config.model.layers[first:last]), s == 0, s == pp - 1
        if alike not in done:
            done.add(alike)
            held = _built(config, gpus, Stage(s, units.bounds), row.size[1])
            # norms, which are replicated over tp, are counted as if they were split
            assert abs(held / counted[s].all - 1) < 0.01, (s, held, counted[s].all)
            blocks = f"blocks {first} to {last - 1}"
            yield f"stage {s}: {blocks}, {held / 1e6:,.1f} million parameters on a rank"
    memory, limit = estimator.estimate(layout_of(config)).memory.total, hardware.usable_bytes
    if memory > limit:
        what = f"a rank needs {memory / GIB:.1f} GiB, and {limit / GIB:.1f} can be used"
        raise UserError(f"{what}: `hypnos plan` without these settings finds a layout that fits")


def _simulated(config: Config, units: StageUnits) -> str:
    """Simulates the schedule of the step's first groups of microbatches."""
    pp, M = config.parallel.pp, config.train.microbatches
    few = min(M, 3 * pp)
    passes = (units.passes,) * few
    recompute = config.parallel.recompute
    timeline = simulate(step_schedule(passes, pp, recompute), passes, pp)
    actions = sum(map(len, timeline.spans))
    return f"schedule: {actions:,} actions of {few} of {M} microbatches in a valid order"


def _built(config: Config, gpus: int, stage: Stage, tokens: int) -> int:
    """Parameters of the first rank of a stage."""
    parallel = config.parallel
    rank = stage.index * (gpus // parallel.pp)
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=gpus)
    try:
        mesh.initialize(parallel.tp, parallel.pp, parallel.sequence_parallel, cp=parallel.cp)
        check_tokens_divide(tokens, config)
        with torch.device("meta"):
            model = SleepLM(config.model, config.sleep, stage)
        return sum(p.numel() for p in model.parameters())
    finally:
        mesh.shutdown()
