"""hypnos doctor: checks this machine, a run's checkpoints, or (--ranks) the ranks of a job."""

from __future__ import annotations

from pathlib import Path

from launch.commands import argument, command, overrides
from launch.commands.values import path, tell
from pretrain.errors import UserError


@command(
    "doctor",
    "check this machine, the checkpoints of a run, or the ranks of a job",
    description="Checks what training needs on this machine. "
    "With RUN, verifies that run's checkpoints instead. "
    "With --ranks, started on every rank by a launcher, runs only the preflight of `hypnos train`: "
    "all ranks are compared and measured, for CONFIG if given.",
    example="hypnos doctor\nhypnos doctor runs/text-tiny\n"
    "srun hypnos doctor --ranks configs/text-tiny.toml train.batch=64\n"
    "torchrun --nproc-per-node=8 --no-python hypnos doctor --ranks",
    arguments=[
        argument(
            "what",
            metavar="RUN|CONFIG",
            type=path,
            nargs="?",
            help="a run's folder, one of its checkpoints, or a TOML file",
        ),
        overrides("settings that differ"),
        argument("--ranks", action="store_true", help="compare and measure the ranks of this job"),
    ],
)
def doctor(what: Path | None, overrides: list[str], ranks: bool) -> int:
    if ranks:
        return _ranks(what, overrides)
    if overrides:
        raise UserError(f"{overrides[0]}: settings need --ranks; see `hypnos doctor --help`")

    from launch.doctor import examine_machine, examine_run, show
    from pretrain.run.console import said_if_slow

    slow = f"reading every byte of {what}" if what else "loading torch, Megatron and DeepSpeed"
    with said_if_slow(slow, tell):
        findings = show(examine_machine() if what is None else examine_run(what))
    return 1 if any(finding.state == "fail" for finding in findings) else 0


def _ranks(config: Path | None, overrides: list[str]) -> int:
    from launch import world

    mine = world.join()
    settings = None
    if config is not None:
        from pretrain.config.run_folder import load_run

        settings = load_run(config, overrides)

    from pretrain.run.console import said_if_slow

    is_first = mine is None or mine.rank == 0
    with said_if_slow("loading torch", tell if is_first else lambda _: None):
        import torch.distributed as dist

        from launch.preflight import check
        from launch.preflight.table import show
        from parallel import mesh

    if survey := check(settings, mine, tell):
        show(survey)
    if mesh.world_size() > 1:
        dist.barrier()  # rank 0 may host the store, so it must not leave first
    mesh.shutdown()
    return 0
