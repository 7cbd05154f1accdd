"""The mpirun command line for each MPI, detected by its output. Real ones: tests/cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.cli import main
from launch.mpi import mpirun, run_mpi
from launch.starts import RankEnd
from launch.world import early_rank
from pretrain.errors import UserError
from pretrain.exit_status import FINISHED, REQUEUE


def says(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Makes an mpirun that only prints which MPI it is."""
    program = folder / "mpirun"
    program.write_text(f"#!/bin/sh\necho '{text}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return str(program)


def test_open_mpi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = says(tmp_path, "mpirun (Open MPI) 4.1.4", monkeypatch)
    names = ("NCCL_SOCKET_IFNAME", "PYTORCH_ALLOC_CONF", "FLA_CONFIG_DIR", "WANDB_MODE")
    for name in names:
        monkeypatch.setenv(name, "x")
    line = mpirun(["a", "b"], 8)
    assert line[0] == program and line[line.index("--host") + 1] == "a:8,b:8"
    assert line[line.index("-np") + 1] == "16"
    assert all(line[line.index(name) - 1] == "-x" for name in names)


@pytest.mark.parametrize("name", ["HYDRA build details:", "Intel(R) MPI Library for Linux"])
def test_mpich_and_intel(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says(tmp_path, name, monkeypatch)
    assert mpirun(["a", "b"], 8)[1:] == ["-hosts", "a,b", "-ppn", "8", "-np", "16"]
    assert mpirun([], 4)[1:] == ["-np", "4"]


def test_none_or_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    says(tmp_path, "something else", monkeypatch)
    config = str(Path(__file__).parents[2] / "configs/depo-small.toml")
    launch = ["launch", "mpi", config, f"run.dir={tmp_path}", "--ranks-per-host", "2"]
    assert main(launch) == 2
    assert "neither Open MPI nor MPICH nor Intel MPI" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(launch) == 2
    assert "there is no mpirun here" in capsys.readouterr().err


def test_ranks_that_have_not_finished_count_where_mpirun_gives_0(tmp_path: Path) -> None:
    assert run_mpi(["true"], tmp_path) == FINISHED
    RankEnd.now(1, REQUEUE, told=True).write(tmp_path)
    assert run_mpi(["true"], tmp_path) == REQUEUE
    assert run_mpi(["false"], tmp_path) == 1


def test_the_rank_before_mpi_is_asked() -> None:
    assert early_rank({"OMPI_COMM_WORLD_RANK": "3", "SLURM_PROCID": "0"}) == 3
    assert early_rank({"PMI_RANK": "2"}) == 2
    with pytest.raises(UserError, match="start ranks with srun or mpirun"):
        early_rank({"PATH": "/bin"})
