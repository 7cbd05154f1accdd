"""A Slurm job as printed: a script that bash accepts, with what site and user request."""

from __future__ import annotations

import math
import os
import re
import subprocess
from pathlib import Path
from typing import get_type_hints

import pytest

from launch.cli import main
from launch.site import Site
from launch.slurm import seconds_of, submit
from pretrain.config.fields import settings
from pretrain.config.load import to_toml

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs/depo-small.toml")


def printed(capsys: pytest.CaptureFixture[str], runs: Path, *arguments: str) -> str:
    """The script of a run in the folder `runs`, whose syntax bash has accepted."""
    status = main(["launch", "slurm", CONFIG, f"run.dir={runs}", *arguments])
    told = capsys.readouterr()
    assert status == 0, told.err
    subprocess.run(["bash", "-n"], input=told.out, text=True, check=True)
    assert not re.search("@[A-Z]+@", told.out)
    return told.out


def site(folder: Path, text: str) -> tuple[str, str]:
    path = folder / "site.toml"
    path.write_text(text)
    return "--site", str(path)


def array_of(script: str, name: str, task: int = 0) -> list[str]:
    """A bash array of a script, as evaluated by bash."""
    begin = script.index(f"\n{name}=(")
    lines = script[begin : script.index("\nhypnos=" if name == "train" else "\nexclude=", begin)]
    shown = f"{lines}\nprintf '%s\\0' \"${{{name}[@]}}\""
    said = subprocess.check_output(
        ["bash", "-c", f"SLURM_ARRAY_TASK_ID={task}\n{shown}"], text=True
    )
    return said.split("\0")[:-1]


def test_slurm_fills_nothing_into_the_name_of_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = printed(capsys, tmp_path, "run.name=lr-50%x")
    assert f"#SBATCH --output={tmp_path}/lr-50%%x/logs/slurm-%j.log\n" in script


def test_what_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["run.name=a b", "train.batch=128"]
    asked = ["--nodes", "16", "--gpus-per-node", "8", "--time", "24:00:00", *settings]
    script = printed(capsys, tmp_path, *asked)
    for option in ("nodes=16", "ntasks-per-node=8", "gpus-per-node=8", "time=24:00:00", "requeue"):
        assert f"#SBATCH --{option}\n" in script
    assert "#SBATCH --signal=USR1@300\n" in script
    assert array_of(script, "train") == [CONFIG, f"run.dir={tmp_path}", *settings]
    assert (tmp_path / "a b/logs").is_dir()  # otherwise sbatch cannot write its log


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("90", 5400), ("90:30", 5430), ("24:00:00", 86400), ("2-0", 172800), ("1-2:30", 95400),
     ("1-0:0:1", 86401), ("UNLIMITED", math.inf), ("0", math.inf), ("24h", None), ("1-", None),
     ("1:2:3:4", None)],
)  # fmt: skip
def test_limits_of_time_are_slurms(time: str, seconds: float | None) -> None:
    assert seconds_of(time) == seconds


def test_a_time_that_slurm_or_the_run_could_not_keep_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["launch", "slurm", CONFIG, f"run.dir={tmp_path}", "--time"]
    assert main([*asked, "24h"]) == 2 and "as 24:00:00" in capsys.readouterr().err
    assert main([*asked, "5"]) == 2 and "slurm.save_before = 300" in capsys.readouterr().err


def test_the_site_is_merged_and_a_flag_is_stronger(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = """
    [slurm]
    account = "a1"
    partition = "slow"
    exclude = "n[1-3]"
    gpus = "gres=gpu"
    save_before = 120
    cpus_per_task = 6
    sbatch = ["--exclusive"]
    [environment]
    modules = ["cuda/13"]
    lines = ["export NCCL_SOCKET_IFNAME=hsn0"]
    """
    asked = ["--gpus-per-node", "4", "--partition", "fast"]
    script = printed(capsys, tmp_path, *site(tmp_path, text), *asked)
    for option in ("account=a1", "partition=fast", "gres=gpu:4", "exclusive", "signal=USR1@120"):
        assert f"#SBATCH --{option}\n" in script
    assert "\nmodule load cuda/13\nexport NCCL_SOCKET_IFNAME=hsn0\n" in script
    assert "\nexclude='n[1-3]'\n" in script
    assert "#SBATCH --cpus-per-task=6\n" in script and " --cpus-per-task=6 " in script


@pytest.mark.parametrize(
    ("types", "chosen"), [("none", "none"), ("none pmi2 cray_shasta", "cray_shasta")]
)
def test_the_way_of_mpi_is_chosen_from_what_srun_has(
    types: str,
    chosen: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    srun = tmp_path / "srun"
    srun.write_text(
        f"#!/bin/sh\nprintf 'MPI plugin types are...\\n' >&2\nprintf '\\t%s\\n' {types} >&2\n"
    )
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert f" --mpi={chosen} " in printed(capsys, tmp_path)


def test_a_version_of_pmix_is_a_way_of_mpi(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    srun = tmp_path / "srun"
    listed = "MPI plugin types are...\\n\\tnone\\n\\tpmix\\n"
    more = "specific pmix plugin versions available: pmix_v3,pmix_v4\\n"
    srun.write_text(f"#!/bin/sh\nprintf '{listed}{more}'\n")
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert " --mpi=pmix_v4 " in printed(
        capsys, tmp_path, *site(tmp_path, '[slurm]\nmpi = "pmix_v4"')
    )


def test_containers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = '[container]\nengine = "apptainer"\nimage = "h.sif"\noptions = ["--nv"]'
    script = printed(capsys, tmp_path, *site(tmp_path, text))
    command = array_of(script, "hypnos")
    assert command[:2] == ["apptainer", "exec"] and command[-3:] == ["--nv", "h.sif", "hypnos"]
    text = '[container]\nengine = "pyxis"\nimage = "h.sqsh"\nmounts = ["/scratch:/scratch"]'
    script = printed(capsys, tmp_path, *site(tmp_path, text))
    assert array_of(script, "hypnos") == ["hypnos"]
    assert script.count("--container-image=h.sqsh") == 3  # begin, the ranks, end
    assert f"--container-mounts={Path.cwd()}:{Path.cwd()},/scratch:/scratch" in script


@pytest.mark.parametrize("path", sorted((ROOT / "configs/sites").glob("*.toml")), ids=str)
def test_the_sites_of_the_documents(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = printed(capsys, tmp_path, "--site", str(path), "--gpus-per-node", "8")
    assert "#SBATCH --account=" in script


def test_every_setting_of_a_site_is_in_the_documents() -> None:
    said = (ROOT / "docs/launch.md").read_text()
    for section, cls in get_type_hints(Site).items():
        for setting in settings(cls):
            row = f"`{section}.{setting.name}` | `{to_toml(setting.default)}` |"
            assert f"| {row} {setting.rule.meaning} |" in said


def test_an_array_has_a_task_for_each_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "runs.txt"
    other = ROOT / "configs/rule110.toml"
    first = "run.name=one#1 'data.heldout=a b' # it's a seed"
    lines.write_text(f"# seeds\n{first}\n\n{other} run.name=two\n")
    script = printed(capsys, tmp_path, "--array", str(lines), "--at-once", "1")
    assert "#SBATCH --array=0-1%1\n" in script
    here = f"run.dir={tmp_path}"
    assert array_of(script, "train", 0) == [CONFIG, here, "run.name=one#1", "data.heldout=a b"]
    assert array_of(script, "train", 1) == [str(other), here, "run.name=two"]

    assert main(["launch", "slurm", CONFIG, here, "--at-once", "1"]) == 2
    assert "and there is none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            '[slurm]\npartitoin = "x"',
            "unknown setting slurm.partitoin; did you mean slurm.partition?",
        ),
        ("[slurm]\nsave_before = 0", "slurm.save_before = 0: must be at least 1"),
        ("[slurm]\ntimeout = 9", "unknown setting slurm.timeout; [slurm] has account, "),
        ('[container]\nengine = "docker"', 'container.engine = "docker": must be "none" or'),
        ('[container]\nengine = "pyxis"', "container.image is missing"),
        (
            '[slurm]\nexclude = "./bad.txt"',
            "slurm.exclude = ./bad.txt (or --exclude): is a file, to which no",
        ),
    ],
)
def test_what_is_wrong_in_a_site_is_told(
    text: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["launch", "slurm", CONFIG, f"run.dir={tmp_path}", *site(tmp_path, text)]
    assert main(arguments) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("run.name=it's", "No closing quotation; quote as in a shell"),
        ("run.sed=1", "unknown setting run.sed; did you mean run.seed?"),
        ("run.name=two parallel.tp=2", "1 ranks are not divisible by parallel.tp = 2"),
    ],
)
def test_what_is_wrong_in_an_array_is_told_with_its_line(
    line: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "runs.txt"
    lines.write_text(f"run.name=one\n{line}\n")
    assert main(["launch", "slurm", CONFIG, "--array", str(lines)]) == 2
    said = capsys.readouterr().err
    assert f"{lines}, line 2: " in said and told in said


def test_two_lines_of_an_array_are_not_one_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "runs.txt"
    lines.write_text("run.seed=1\nrun.seed=2\n")
    assert main(["launch", "slurm", CONFIG, f"run.dir={tmp_path}", "--array", str(lines)]) == 2
    assert "line 2" in capsys.readouterr().err


def test_hosts_that_cannot_start_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is excluded, however often the job was started before; the third in a row ends it."""
    script = re.sub(r"\nhypnos=.*", '\nhypnos=("$BEGIN")', printed(capsys, tmp_path))
    scontrol, said = tmp_path / "scontrol", tmp_path / "said"
    scontrol.write_text(f"#!/bin/sh\necho $* >>{said}\n")
    scontrol.chmod(0o755)
    (tmp_path / "srun").symlink_to("/bin/true")
    job = {"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "9"}
    job["PATH"] = f"{tmp_path}:{os.environ['PATH']}"

    def start(host: str, begin: str) -> int:
        there = {**job, "SLURMD_NODENAME": host, "BEGIN": begin}
        return subprocess.run(["bash", "-c", script], env=there).returncode

    assert [start("n1", "no-python"), start("n2", "no-python")] == [75, 75]
    assert "requeue 17\nupdate JobId=17 ExcNodeList=n1,n2\n" in said.read_text()
    assert start("n3", "true") == 0
    assert [start(host, "no-python") for host in ("n4", "n5", "n6")] == [75, 75, 2]
    away = tmp_path / "away"  # storage is away when the end is to be recorded
    away.write_text('#!/bin/sh\n[ "$2" = begin ] || exit 74\n')
    away.chmod(0o755)
    assert start("n1", str(away)) == 75


def test_a_job_that_another_submits_takes_nothing_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sbatch passes its environment on, and so the script would requeue the wrong job."""
    sbatch = tmp_path / "sbatch"
    sbatch.write_text("#!/bin/sh\necho $(env | grep -c -e ^SLURM -e ^PMI)$SLURM_CONF\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_CPU_BIND", "PMIX_RANK"):
        monkeypatch.setenv(name, "17")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    assert submit("", tmp_path / "job.sbatch") == "5/etc/slurm.conf"  # a user's own, in no job
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert submit("", tmp_path / "job.sbatch") == "1/etc/slurm.conf"


def test_submit_without_sbatch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["launch", "slurm", CONFIG, f"run.dir={tmp_path}", "--submit"]) == 2
    assert "there is no sbatch here" in capsys.readouterr().err
