"""How a rank is identified: from launchers' variables as they set them, half set, and nested."""

from __future__ import annotations

import pytest

from launch.world import World, find, hosts, slurm_job
from pretrain.errors import UserError

TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "29500",
}  # fmt: skip
# what Slurm 22.05 sets for task 2 of `srun -N2 -n3`
SRUN = {
    "SLURM_JOB_ID": "17", "SLURM_STEP_ID": "0", "SLURM_PROCID": "2", "SLURM_NTASKS": "3",
    "SLURM_STEP_NUM_TASKS": "3", "SLURM_LOCALID": "0", "SLURM_STEP_NODELIST": "n[0-1]",
    "SLURM_NODEID": "1",
}  # fmt: skip


def test_a_process_that_nothing_started_is_alone() -> None:
    assert find({"PATH": "/bin", "SLURM_CONF": "x"}) is None


def test_torchrun() -> None:
    world = World("torchrun", rank=3, size=4, local_rank=1, address="a", port=29500)
    assert find(TORCHRUN) == world
    assert world.variables() == TORCHRUN


def test_srun() -> None:
    world = find(SRUN)
    assert world is not None
    assert (world.launcher, world.rank, world.size, world.local_rank) == ("srun", 2, 3, 0)
    assert world.address == "n0"


def test_ranks_of_one_step_meet_at_one_port_and_others_elsewhere() -> None:
    def port(**changes: str) -> int:
        world = find(SRUN | changes)
        assert world is not None
        return world.port

    assert port() == port(SLURM_PROCID="0", SLURM_LOCALID="1")
    others = port(SLURM_STEP_ID="1"), port(SLURM_JOB_ID="18"), port(SLURM_RESTART_COUNT="1")
    assert len({port(), *others}) == 4


def test_the_shell_that_salloc_opens_is_alone() -> None:
    """If Slurm makes it a step (LaunchParameters=use_interactive_step), with one task."""
    step = {"SLURM_STEP_ID": "4294967290", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}
    world = find(SRUN | step)
    assert world is not None and world.size == 1


def test_pmi_of_srun_is_srun() -> None:
    world = find(SRUN | {"PMI_RANK": "2", "PMI_SIZE": "3"})
    assert world is not None and world.launcher == "srun"


def test_the_innermost_launcher_counts() -> None:
    world = find(SRUN | TORCHRUN)
    assert world is not None and world.launcher == "torchrun"


def test_a_batch_script_by_itself_is_no_rank() -> None:
    alone = {name: value for name, value in SRUN.items() if name != "SLURM_STEP_ID"}
    assert find(alone) is None


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE set, but not RANK, MASTER_ADDR, MASTER_PORT: start with"),
        (TORCHRUN | {"RANK": "x"}, "RANK = 'x' is not a whole number"),
        (TORCHRUN | {"MASTER_PORT": "91532"}, "MASTER_PORT = 91532 is not a port from 1 to 65535"),
        (
            TORCHRUN | {"RANK": "4"},
            "rank 4 of 4: torchrun's variables contradict each other; let torchrun set them",
        ),
        (
            {"SLURM_STEP_ID": "0", "SLURM_PROCID": "0"},
            "SLURM_PROCID set, but not SLURM_STEP_NUM_TASKS",
        ),
    ],
)
def test_what_is_half_set_is_told(environment: dict[str, str], told: str) -> None:
    with pytest.raises(UserError) as error:
        find(environment)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("nodes", "names"),
    [
        ("gpu7", ["gpu7"]),
        ("gpu[08-10,3]", ["gpu08", "gpu09", "gpu10", "gpu3"]),
        ("login,a[1-2]-b", ["login", "a1-b", "a2-b"]),
        ("r[0-1]n[2,4]", ["r0n2", "r0n4", "r1n2", "r1n4"]),
    ],
)
def test_slurms_lists_of_nodes(nodes: str, names: list[str]) -> None:
    """As `scontrol show hostnames` prints them."""
    assert list(hosts(nodes)) == names


def test_a_task_of_an_array_has_a_number_of_its_own() -> None:
    """Also the last one, whose job id is that of the whole array."""
    array = {"SLURM_JOB_ID": "17", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "3"}
    assert slurm_job(array) == "17_3" and slurm_job(SRUN) == "17" and slurm_job({}) is None
