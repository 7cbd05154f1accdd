"""What a preflight concludes from reports, and its message for each misconfiguration."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import psutil
import pytest
import torch
import torch.distributed as dist

from launch import doctor
from launch.cli import main
from launch.doctor import Finding
from launch.outcome import NO_OTHER_START
from launch.preflight import check, faults, folder, rendezvous, verdict
from launch.preflight.rates import choose_partners
from launch.preflight.report import Rates, Report
from launch.preflight.verdict import named, of_rates, of_reports
from launch.world import World
from pretrain.errors import UserError
from pretrain.exit_status import UNFIT
from tests.ranks import free_port

ROOT = Path(__file__).parents[2]
SOUND = Report(
    rank=0, host="n0", device="H100", gpu="a", gpus=2, driver="570.1", disk_free=1 << 40, found=[],
    digest="d", facts={"data.batch": "8"},
)  # fmt: skip


def job(hosts: int = 3, **changes: object) -> list[Report]:
    """Two ranks per host, each with its own GPU; `changes` are for rank 3, on the second host."""
    reports = [
        replace(SOUND, rank=rank, host=f"n{rank // 2}", gpu=f"gpu-{rank}")
        for rank in range(2 * hosts)
    ]
    reports[3] = replace(reports[3], **changes)
    return reports


def test_a_sound_job_has_no_problems() -> None:
    assert of_reports(job(), unseen=()) == []
    assert of_rates(job(), [Rates(1e15, 2e10, 1e11)] * 6) == []


@pytest.mark.parametrize(
    ("changes", "state", "line"),
    [
        ({"ahead": 60.0}, "note", "rank 3 on n1: the clock is 60 s ahead; synchronise it"),
        ({"ahead": -9.0}, "note", "rank 3 on n1: the clock is 9 s behind"),
        ({"disk_free": 1 << 30}, "note", "rank 3 on n1: 1.0 GiB free where the run's folder is"),
        ({"driver": "535.2"}, "note", "rank 3 on n1: the driver is 535.2, but 570.1 on most ranks"),
        ({"gpu": "gpu-2"}, "fail", "ranks 2-3 on n1: share one GPU; give each rank its own LOCAL"),
        ({"gpus": 8}, "note", "ranks 2-3 on n1: 2 of 8 GPUs are used; start 8 ranks per host"),
        (
            {"digest": "e", "facts": {"data.batch": "4"}},
            "fail",
            "rank 3 on n1: data.batch is 8 on rank 0 on n0, but 4 on n1; start all ranks with",
        ),
        ({"found": [Finding("fail", "gpu", "no", "x")]}, "fail", "rank 3 on n1: no; x"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, object], state: str, line: str) -> None:
    (problem,) = of_reports(job(**changes), unseen=())
    assert problem.state == state and str(problem).startswith(line)
    error = verdict.error([problem], ["n0", "n1", "n2"])
    if state == "note":
        assert error is None
    else:
        assert error is not None and error.bad_hosts == ["n1"] and error.status == UNFIT


def test_rank_0_is_the_odd_one_where_all_others_agree() -> None:
    reports = [replace(each, digest="e", facts={"data.batch": "4"}) for each in job()]
    reports[0] = job()[0]
    (problem,) = of_reports(reports, unseen=())
    assert str(problem).startswith("rank 0 on n0: data.batch is 4 on rank 1 on n0, but 8 on n0")


def test_files_that_rank_0_does_not_see() -> None:
    (problem,) = of_reports(job(), unseen={2, 3})
    assert str(problem).startswith("ranks 2-3 on n1: rank 0 does not see its files; set run.dir")


def test_hosts_with_fewer_ranks_than_others() -> None:
    (problem,) = of_reports([replace(each, gpus=0) for each in job()[:-1]], unseen=())
    assert str(problem).startswith("rank 4 on n2: 1 ranks, but 2 on most hosts; start the same")


def test_what_is_wrong_everywhere_is_no_hosts_fault() -> None:
    reports = [replace(each, found=[Finding("fail", "gpu", "no", "x")]) for each in job()]
    error = verdict.error(of_reports(reports, unseen=()), ["n0", "n1", "n2"])
    assert error is not None and error.bad_hosts == [] and error.status == 2
    assert str(error) == "preflight: ranks 0-1 on n0: no; x (and 2 more)"


@pytest.mark.parametrize(
    ("gpu", "share", "state"),
    [("a", 0.9, None), ("a", 0.7, "note"), ("a", 0.4, "fail"), ("", 0.4, None), ("", 0.2, "note")],
)
@pytest.mark.parametrize("what", ["matmul", "exchange"])
def test_a_slow_rank(gpu: str, share: float, state: str | None, what: str) -> None:
    reports = [replace(each, gpu=gpu) for each in job()]
    rates = [Rates(8e14, 4e10, 1e11)] * 6
    rates[3] = replace(rates[3], **{what: getattr(rates[3], what) * share})
    problems = of_rates(reports, rates)
    assert [problem.state for problem in problems] == ([state] if state else [])
    if state:
        assert problems[0].ranks == (3,) and "but the job's median is" in str(problems[0])


def test_ranks_in_words() -> None:
    assert named([3]) == "rank 3" and named([0, 5, 4, 6]) == "ranks 0, 4-6"
    assert named(range(0, 40, 2)) == "ranks 0, 2, 4, 6, 8, 10, 12, 14 and 12 more"


@pytest.mark.parametrize("hosts", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("each", [1, 2, 8])
def test_partners_are_on_other_hosts_and_two_where_there_are_two(hosts: int, each: int) -> None:
    where = [f"n{rank // each}" for rank in range(hosts * each)]
    partners = choose_partners(where)
    for rank, others in enumerate(partners):
        assert all(rank in partners[other] for other in others)
        if hosts > 1:
            assert others and all(where[other] != where[rank] for other in others)
        if hosts > 2 and hosts % 2 == 0:
            assert len(set(others)) == 2


@pytest.mark.parametrize(
    ("variable", "value", "ok"),
    [
        ("NCCL_SOCKET_IFNAME", "eth", True),
        ("NCCL_SOCKET_IFNAME", "ib,eth1", True),
        ("NCCL_SOCKET_IFNAME", "=eth", False),
        ("NCCL_SOCKET_IFNAME", "=eth1:2", True),
        ("NCCL_SOCKET_IFNAME", "^lo,docker", True),
        ("NCCL_SOCKET_IFNAME", "^lo,eth", False),
        ("NCCL_SOCKET_IFNAME", "ib0", False),
        ("GLOO_SOCKET_IFNAME", "eth", False),
        ("GLOO_SOCKET_IFNAME", "ib0,eth1", True),
    ],
)
def test_interfaces_that_are_not_there(variable: str, value: str, ok: bool) -> None:
    found = list(faults.interfaces({variable: value}, ["lo", "eth1"], uses_nccl=True))
    assert ok == (found == [])
    if found:
        line = f"{variable} = {value} matches no network interface of this host"
        assert (found[0].state, found[0].found) == ("fail", line)
        assert "set it to one of eth1, lo" in found[0].fix


def test_a_rank_without_a_gpu_of_its_own() -> None:
    (found,) = faults.own_gpu(local_rank=4, gpus=4)
    assert found.found == "LOCAL_RANK = 4, but this host shows 4 GPUs"
    assert "--ntasks-per-node=4" in found.fix
    assert not list(faults.own_gpu(3, 4)) and not list(faults.own_gpu(3, 0))


def test_an_old_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It ends a run that would otherwise use the CPU; hidden GPUs do not."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "has_gpu", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    (found,) = faults.driver({})
    assert found.state == "fail" and "CUDA 13.0, which the driver does not support" in found.found
    with pytest.raises(UserError, match="which the driver does not support; update the driver"):
        check(None, None, print)
    assert not list(faults.driver({"CUDA_VISIBLE_DEVICES": ""}))


@pytest.mark.parametrize(
    ("gpu", "environment", "state", "said"),
    [
        (True, {}, "note", "there is a GPU, but this torch is a CPU build"),
        (
            False,
            {"SLURM_GPUS_ON_NODE": "4"},
            "fail",
            "Slurm has allocated GPUs (SLURM_GPUS_ON_NODE = 4), but this torch is a CPU build",
        ),
        (True, {"CUDA_VISIBLE_DEVICES": "", "SLURM_GPUS_ON_NODE": "4"}, "", ""),
        (False, {"SLURM_GPUS_ON_NODE": "0"}, "", ""),
    ],
)
def test_a_cpu_build_where_there_are_gpus(
    gpu: bool,
    environment: dict[str, str],
    state: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may be intended, but not if the job has requested GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(doctor, "has_gpu", lambda: gpu)
    found = list(faults.driver(environment))
    assert [(each.state, each.found) for each in found] == ([(state, said)] if said else [])
    assert all("`make setup DEVICE=cuda`" in each.fix for each in found)


def test_a_container_without_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(doctor, "has_gpu", lambda: False)
    (found,) = faults.driver({"SLURM_STEP_GPUS": "0,1"})
    assert found.state == "fail" and "no NVIDIA driver answers for the GPUs here" in found.found


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that is in use."""
    with socket.socket() as server:
        server.bind(("", 0))
        server.listen()
        yield int(server.getsockname()[1])


def world(rank: int, address: str, port: int) -> World:
    return World("torchrun", rank=rank, size=2, local_rank=0, address=address, port=port)


def connect(mine: World) -> str:
    """The error if rank 0's store cannot be reached."""
    with pytest.raises(UserError) as error:
        rendezvous.connect(mine, 0.3, print)
    return str(error.value)


def test_a_port_that_is_taken(taken: int) -> None:
    line = connect(world(0, "localhost", taken))
    assert line.startswith(f"MASTER_PORT = {taken} is in use on {socket.gethostname()} by process")
    assert "set MASTER_PORT to another" in line


def test_a_port_whose_user_cannot_be_seen(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS, where only root sees other processes' connections."""

    def forbidden(_: str) -> NoReturn:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "net_connections", forbidden)
    line = connect(world(0, "localhost", taken))
    assert f"{taken} is in use on {socket.gethostname()}: end that" in line


def test_a_port_of_our_choice_that_is_taken_is_no_mistake_of_the_users(taken: int) -> None:
    """After a user error Slurm would not restart the job; but the next start has another port."""
    with pytest.raises(
        UserError, match=f"^port {taken}, chosen for this start, is in use on "
    ) as told:
        rendezvous.connect(replace(world(0, "localhost", taken), launcher="srun"), 0.3, print)
    assert told.value.status not in NO_OTHER_START


def test_an_address_that_is_not_rank_0s(monkeypatch: pytest.MonkeyPatch) -> None:
    line = connect(world(0, "198.51.100.7", free_port()))
    assert line.startswith(
        f"MASTER_ADDR = 198.51.100.7 is not {socket.gethostname()}, where rank 0"
    )
    line = connect(world(0, "no.such.host.invalid", free_port()))
    assert "knows no such host" in line and "set it to the name of rank 0's host" in line
    monkeypatch.setenv("SLURM_STEP_NODELIST", "n[0-1]")
    line = connect(world(0, "localhost", free_port()))
    assert line.startswith("MASTER_ADDR = localhost refers to each host itself, and there are")


def test_rank_0s_own_name_may_be_a_loopback_address_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Debian writes it in each host's /etc/hosts; other hosts have another address for it."""
    debian = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: debian)
    monkeypatch.setenv("SLURM_STEP_NODELIST", "n[0-1]")
    monkeypatch.setenv("SLURMD_NODENAME", "n0")
    rendezvous.connect(replace(world(0, "n0", free_port()), launcher="srun"), 0.3, print)


def test_a_rank_0_that_is_not_there() -> None:
    port = free_port()
    line = connect(world(1, "localhost", port))
    here = f"rank 1 on {socket.gethostname()}"
    assert line.startswith(f"{here}: rank 0 could not be reached at localhost:{port} in 0.3 s (")
    assert "refused" in line and "it has not started or has ended, see its log" in line
    line = connect(world(1, "no.such.host.invalid", port))
    assert "MASTER_ADDR = no.such.host.invalid is a name that this host does not know" in line


def test_a_rank_that_does_not_come(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rendezvous, "SAY_S", 0.2)
    monkeypatch.setattr("launch.preflight.survey.JOIN_S", 0.5)
    monkeypatch.setenv("SLURM_STEP_NODELIST", "n[0-1]")
    monkeypatch.setenv("SLURMD_NODENAME", "n0")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    said = list[str]()
    with pytest.raises(UserError) as error:
        check(None, world(0, "127.0.0.1", store.port), said.append)
    assert said == ["still waiting for rank 1 of 2 after 0 s"] * len(said) and said
    line = "rank 1 of 2 did not connect in 0.5 s (no rank has connected from n1): see their logs"
    assert str(error.value).startswith(f"preflight: {line}")
    assert '"n1"' in (tmp_path / "preflight.json").read_text()


def test_tokens_show_whether_it_is_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "PATIENCE_S", 0.2)
    mine, other = tmp_path / "mine/runs/a", tmp_path / "other/runs/a"
    for each in (mine, other):
        each.parents[1].mkdir()
    meeting = folder.begin(mine, "x")
    assert meeting.levels == 2  # neither runs/ nor runs/a is made
    with ThreadPoolExecutor() as ranks:
        ranks.map(lambda rank: folder.leave_token(meeting, mine, rank), (1, 2))
    assert folder.missing_tokens(meeting, mine, range(3)) == set()
    assert "is not the folder that rank 0 sees" in folder.leave_token(meeting, other, 3)
    assert folder.missing_tokens(meeting, mine, range(4)) == {3}
    folder.end(meeting, mine)
    assert not list((tmp_path / "mine").iterdir())


@pytest.mark.parametrize(("flags", "looks"), [([], 1), (["--no-preflight"], 0)])
def test_a_run_begins_with_it_unless_told_otherwise(
    flags: list[str], looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[str]()
    monkeypatch.setattr("launch.preflight.check", lambda *_: calls.append("check"))
    monkeypatch.setattr("pretrain.trainer.train", lambda _: calls.append("train"))
    monkeypatch.setattr("parallel.mesh.shutdown", lambda: None)
    assert main(["train", str(ROOT / "configs/depo-small.toml"), *flags]) == 0
    assert calls == ["check"] * looks + ["train"]
