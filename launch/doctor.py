"""Checks what training needs of a machine, by trying it: one finding each, with the fix."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.bootstrap import has_gpu
from launch.world import given_gpus
from pretrain.errors import UserError
from pretrain.origin import cores

if TYPE_CHECKING:
    from pretrain.checkpoint import Checkpoint
    from pretrain.config.schema import Config

GIB = 1 << 30


@dataclass
class Finding:
    """`state` is "ok", "note" (training works, with limitations) or "fail" (it does not)."""

    state: str
    what: str
    found: str
    fix: str = ""


def examine_machine() -> Iterator[Finding]:
    """Every check, in the order in which one depends on another."""
    yield Finding("ok", "python", f"{platform.python_version()} at {sys.executable}")
    torch = list(_torch())
    yield from torch
    if torch[0].state == "ok":  # the rest of the software needs torch
        for check in (_gloo, _packages, _kernels, _launchers):
            yield from check()
    yield _compiler()
    yield _memory()
    yield _disk()


def examine_run(run: Path) -> Iterator[Finding]:
    """Verifies every byte of a run's checkpoints, or of the checkpoint `run`; needs nothing else of
    what trained it.
    """
    from pretrain.checkpoint import Checkpoint, resume_candidates, steps
    from pretrain.checkpoint.folder import given_up, strays

    place = Path(os.path.abspath(run))
    if place.parent.name == "checkpoints" and place.is_dir():
        yield from _checkpoint(place.name, partial(Checkpoint.open, place))
        return
    found, trained = steps(run), None
    for step in found:
        whole = yield from _checkpoint(f"step {step:,}", partial(Checkpoint.of, run, step))
        trained = whole.config if whole else trained
    if trained:
        yield from _tokenizer(run, trained)
    told: list[str] = []
    resume_candidates(run, told.append)
    for line in told:
        fix = "write the name of the checkpoint to resume from into it"
        yield Finding("fail", "latest", line, fix)
    if not found and not told:
        raise UserError(f"{run}: no checkpoints; give the folder of a run that wrote one")
    for name in given_up(run):
        went = f"{name}: the run went back to an earlier checkpoint and continued from there"
        yield Finding("note", "given up", went, "delete it if nobody needs it")
    yield from (Finding("note", "checkpoints", line) for line in strays(run))


def _checkpoint(
    what: str, read: Callable[[], Checkpoint]
) -> Generator[Finding, None, Checkpoint | None]:
    """The findings for one checkpoint; returns the checkpoint if it is intact."""
    from pretrain.checkpoint import Deleted, Unreadable

    try:
        checkpoint = read()
    except Deleted:  # just now, by a running run
        return None
    except UserError as error:
        fix = "restore it from an intact copy; training resumes from the newest intact one"
        fix = "" if isinstance(error, Unreadable) else fix  # its message has its own fix
        yield Finding("fail", what, str(error), fix)
        return None
    yield Finding("ok", what, "whole")
    yield from (Finding("note", what, line) for line in checkpoint.strays())
    return checkpoint


def _tokenizer(run: Path, trained: Config) -> Iterator[Finding]:
    """The finding for the tokenizer in the run's folder; none for tasks without text."""
    from pretrain.config.checks import uses_tokenizer
    from pretrain.config.run_folder import check_tokenizer, configuration_of
    from tokenizer import TokenizerError
    from tokenizer.encode import Tokenizer

    config = configuration_of(run, trained)
    if not uses_tokenizer(config):
        return
    try:
        check_tokenizer(config)
        Tokenizer.load(config.data.tokenizer)
    except UserError as error:
        yield Finding("fail", "tokenizer", str(error))  # its message has the fix
    except TokenizerError as error:
        fix = "replace it with the data.tokenizer that the run was trained with"
        yield Finding("fail", "tokenizer", str(error), fix)
    else:
        yield Finding("ok", "tokenizer", "whole")


def show(findings: Iterable[Finding]) -> list[Finding]:
    """Prints each finding as soon as it is made, with its fix below; returns all."""
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True)
    colours = {"ok": "green", "note": "yellow", "fail": "red"}
    shown = []
    for finding in findings:
        state = Text(f"{finding.state:5}", style=colours[finding.state])
        console.print(state, Text(f"{finding.what:14} {finding.found}"))
        if finding.fix:
            console.print(Text(f"{'':6}{'':14} fix: {finding.fix}"))
        shown.append(finding)
    return shown


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except Exception as error:  # OSError for a missing library, for example
        yield Finding("fail", "torch", str(error), "run `make setup`")
        return
    yield Finding("ok", "torch", f"{torch.__version__}, {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(number)
            yield Finding(
                "ok", f"gpu {number}", f"{device.name}, {device.total_memory / GIB:.0f} GiB"
            )
    else:
        none = Finding("note", "gpu", "none: small runs train on the CPU")
        yield from list(gpu_unused(os.environ)) or [none]


def gpu_unused(environment: Mapping[str, str]) -> Iterator[Finding]:
    """A GPU of this machine, or allocated by Slurm, that torch cannot use, and why."""
    import torch

    given, answers = given_gpus(environment), has_gpu()
    there = answers or any(Path("/dev").glob("nvidia[0-9]*"))
    if torch.cuda.is_available() or not (given or there):
        return
    if torch.version.cuda is None:
        where = f"Slurm has allocated GPUs ({given})" if given else "there is a GPU"
        found = f"{where}, but this torch is a CPU build"
        fix = "run `make setup DEVICE=cuda`, or set CUDA_VISIBLE_DEVICES= to train on the CPU"
    elif not answers:
        found = "no NVIDIA driver answers for the GPUs here"
        fix = "give the container the driver of its host, as `apptainer run --nv` does"
    else:
        found = f"torch is built for CUDA {torch.version.cuda}, which the driver does not support"
        fix = "update the driver; `nvidia-smi` shows the CUDA version that it supports"
    yield Finding("fail", "gpu", found, fix)


def _gloo() -> Iterator[Finding]:
    """A world of one sums a tensor with itself."""
    import torch
    import torch.distributed as dist

    try:
        group: Any = dist.ProcessGroupGloo(dist.HashStore(), 0, 1, timedelta(seconds=30))
        group.allreduce([torch.ones(1)]).wait()
    except RuntimeError as error:
        fix = "set GLOO_SOCKET_IFNAME to a network interface of `ip link`, such as lo"
        yield Finding("fail", "gloo", str(error).splitlines()[0], fix)
    else:
        yield Finding("ok", "gloo", "collectives work")


def _packages() -> Iterator[Finding]:
    for name in ("deepspeed", "megatron.core", "sentencepiece", "webdataset", "transformers"):
        try:
            module = importlib.import_module(name)
        except Exception as error:  # a broken package may raise anything on import
            yield Finding(
                "fail", name, f"{type(error).__name__}: {error}", "run `make clean setup`"
            )
        else:
            yield Finding("ok", name, str(module.__version__))


def _kernels() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        return
    try:
        importlib.import_module("fla.ops.gated_delta_rule")
    except ImportError:
        install = "`.venv/bin/pip install -c constraints.txt -e '.[gpu]'`"
        fix = f"{install} in Hypnos's folder, for the fast delta rule on this GPU"
        yield Finding("note", "fla", "not installed: the delta rule runs in plain torch", fix)
    else:
        yield Finding("ok", "fla", "the delta rule uses its fast kernels")


def _launchers() -> Iterator[Finding]:
    """What Triton needs on this machine: it compiles C code that launches its kernels."""
    import torch

    if not torch.cuda.is_available():
        return
    missing = []
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        missing.append("a C compiler")
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        missing.append("Python's headers")
    if missing:
        found = f"no kernel can be started without {' and '.join(missing)}"
        yield Finding("fail", "triton", found, "`apt install gcc python3-dev`")


def _compiler() -> Finding:
    compiler = shutil.which("c++") or shutil.which("g++")
    missing = "no C++ compiler: DeepSpeed cannot build its extras"
    return _note_unless(compiler is not None, "compiler", compiler or missing, "`apt install g++`")


def _memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    found = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free, {cores()} cores"
    fix = "close other programs, or lower train.batch or raise train.microbatches"
    return _note_unless(memory.available >= 4 * GIB, "memory", found, fix)


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    found = f"{free / GIB:.1f} GiB free in {Path.cwd()}"
    fix = "free some space, or write runs elsewhere with run.dir=/another/disk"
    return _note_unless(free >= 5 * GIB, "disk", found, fix)


def _note_unless(good: bool, what: str, found: str, fix: str) -> Finding:
    return Finding("ok", what, found) if good else Finding("note", what, found, fix)
