"""The doctor says what it finds, what is missing and what to do about it."""

from __future__ import annotations

import builtins
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from launch import doctor
from launch.cli import main
from pretrain import checkpoint
from tests.checkpoint.written import write
from tests.convert.made import config, write_run


def test_this_machine_can_train(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    written = capsys.readouterr().out
    for what in ("python", "torch", "gloo", "deepspeed", "megatron.core", "memory", "disk"):
        assert any(line.split()[:2] == ["ok", what] for line in written.splitlines()), (
            what,
            written,
        )
    assert torch.__version__ in written


@pytest.mark.parametrize(
    "error", [ImportError("No module named 'torch'"), OSError("libcudart.so.13: cannot open")]
)
def test_a_torch_that_cannot_be_imported_fails_with_its_fix(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real: Callable[..., Any] = builtins.__import__

    def without_torch(name: str, *rest: Any) -> Any:
        if name == "torch":
            raise error
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    assert main(["doctor"]) == 1
    written = capsys.readouterr().out
    assert "fail  torch" in written and "fix: run `make setup`" in written


def test_a_gpu_that_a_cpu_build_cannot_use_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(doctor, "has_gpu", lambda: True)
    gpu = next(finding for finding in doctor.examine_machine() if finding.what == "gpu")
    assert gpu.state == "fail" and gpu.fix.startswith("run `make setup DEVICE=cuda`")


def test_a_gpu_needs_what_triton_compiles_its_launchers_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/gcc" if name == "gcc" else None)
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    [headers] = doctor._launchers()
    assert headers.state == "fail" and headers.found.endswith("without Python's headers")
    assert "python3-dev" in headers.fix
    (tmp_path / "Python.h").touch()
    assert not list(doctor._launchers())
    monkeypatch.setattr(shutil, "which", lambda _: None)
    [compiler] = doctor._launchers()
    assert compiler.found.endswith("without a C compiler")


def test_a_full_disk_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(free=doctor.GIB))
    disk = next(finding for finding in doctor.examine_machine() if finding.what == "disk")
    assert disk.state == "note" and "1.0 GiB free" in disk.found and "run.dir" in disk.fix


def test_a_runs_checkpoints_are_verified(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", str(tmp_path)]) == 2
    assert f"{tmp_path}: no checkpoints" in capsys.readouterr().err

    for step in (5, 10):
        write(tmp_path, step)
    assert main(["doctor", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == [
        "ok",
        "step",
        "5",
        "whole",
        "ok",
        "step",
        "10",
        "whole",
    ]

    damaged = tmp_path / "checkpoints" / "step-10" / "model.0.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    assert main(["doctor", str(tmp_path)]) == 1
    ok, fail, fix = capsys.readouterr().out.splitlines()
    assert ok.startswith("ok") and fail.startswith("fail  step 10") and str(damaged) in fail
    assert fix.strip().startswith("fix: restore it from an intact copy")

    # only another version can read it
    (tmp_path / "checkpoints/step-10/index.json").write_text('{"format": 99}')
    (tmp_path / "checkpoints/latest").write_text("step-15\n")
    assert main(["doctor", str(tmp_path)]) == 1
    _, fail, latest, fix = capsys.readouterr().out.splitlines()
    assert (
        "format 99, but this Hypnos reads format 4" in fail
        and "step-15: missing, but `latest` names it" in latest
    )
    assert fix.strip() == "fix: write the name of the checkpoint to resume from into it"


def test_one_checkpoint_is_verified_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = write(tmp_path, 5), write(tmp_path, 10)
    (first / "index.json").unlink()
    assert main(["doctor", str(second)]) == 0
    assert capsys.readouterr().out.split() == ["ok", "step-10", "whole"]
    assert main(["doctor", str(first)]) == 1
    assert "index.json: missing; " in capsys.readouterr().out


def test_a_text_run_without_its_tokenizer_fails(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the same message as in `hypnos generate` and `hypnos export`."""
    run = write_run(tmp_path / "run", config(model))
    assert main(["doctor", str(run)]) == 0
    assert "ok    tokenizer      whole" in capsys.readouterr().out
    own = run / "tokenizer.model"
    own.write_bytes(own.read_bytes()[:-1])
    assert main(["doctor", str(run)]) == 1
    assert f"fail  tokenizer      {own}: damaged" in capsys.readouterr().out
    own.unlink()
    assert main(["doctor", str(run)]) == 1
    failed = f"fail  tokenizer      {own}: missing; copy the whole folder of the run"
    assert failed in capsys.readouterr().out


def test_a_checkpoint_that_goes_meanwhile_is_not_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run in progress deletes old ones."""
    write(tmp_path, 5)
    monkeypatch.setattr(checkpoint, "steps", lambda run: [2, 5])
    assert main(["doctor", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == ["ok", "step", "5", "whole"]
