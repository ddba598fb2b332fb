from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from flair2_exp.errors import DeviceError
from flair2_exp.ranks import Rank, rank_of, ranks_from_outside, step_name

ROOT = Path(__file__).parents[1]


def srun(tasks: int, number: int = 0, nodes: int = 1, **others: str) -> dict[str, str]:
    """What srun sets for a task of a step."""
    per_node = tasks // nodes
    return {
        "SLURM_JOB_ID": "12", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_NTASKS": str(tasks), "SLURM_PROCID": str(number), "SLURM_JOB_NAME": "python",
        "SLURM_LOCALID": str(number % per_node), "SLURM_NODEID": str(number // per_node),
        "SLURM_STEP_NUM_NODES": str(nodes), "SLURM_STEP_NODELIST": "gpu[07-09]", **others,
    }  # fmt: skip


def torchrun(world: int, number: int = 0) -> dict[str, str]:
    """What torchrun sets for a process, on one machine."""
    return {
        "TORCHELASTIC_RUN_ID": "none", "RANK": str(number), "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(number), "LOCAL_WORLD_SIZE": str(world), "GROUP_RANK": "0",
        "MASTER_ADDR": "localhost", "MASTER_PORT": "29500",
    }  # fmt: skip


BATCH_SCRIPT = {
    "SLURM_JOB_ID": "12", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0", "SLURM_JOB_NAME": "train",
}  # fmt: skip
"""What `sbatch --ntasks=2` sets for its script, which is one process."""


@pytest.mark.parametrize(
    "environ",
    [
        {},
        BATCH_SCRIPT,
        srun(1, SLURM_JOB_NAME="bash"),
        srun(1, SLURM_JOB_NAME="interactive"),
        srun(1, SLURM_JOB_NAME="jupyter"),
        srun(1, SLURM_JOB_NAME="spawner-jupyterhub"),
        srun(1, SLURM_JOB_NAME="mine", SLURM_PTY_PORT="4000"),  # srun --pty
        srun(1, SLURM_STEP_ID="4294967290"),  # salloc's own step
        {**torchrun(1), "LOCAL_WORLD_SIZE": ""},
        {"NODE_RANK": "1", "LOCAL_RANK": "1", "RANK": "1", "WORLD_SIZE": "2"},
    ],
    ids=str,
)
def test_a_process_that_was_started_by_hand_starts_the_others(environ: Mapping[str, str]) -> None:
    assert rank_of(1, 1, environ) == Rank()
    two = rank_of(2, 1, environ)
    assert (two.number, two.world, two.first, two.starts_others) == (0, 2, True, True)
    assert ranks_from_outside(environ) is None
    assert step_name(environ) is None


def test_a_task_of_srun_and_a_process_of_torchrun_know_which_they_are() -> None:
    third = rank_of(2, 2, srun(4, 2, nodes=2))
    assert (third.number, third.node, third.local, third.world) == (2, 1, 0, 4)
    assert (third.address, third.first, third.starts_others) == ("gpu07", False, False)
    assert step_name(srun(4, 2, nodes=2)) == "slurm-12.0"
    one_machine = rank_of(2, 1, srun(2, 1))
    assert (one_machine.address, one_machine.local) == ("127.0.0.1", 1)
    assert one_machine.port == rank_of(2, 1, srun(2, 0)).port
    assert one_machine.port != rank_of(2, 1, srun(2, 1, SLURM_STEP_ID="1")).port
    assert rank_of(2, 1, srun(2, 1, MASTER_PORT="5000")).port == 5000
    second = rank_of(2, 1, torchrun(2, 1))
    assert (second.number, second.port, second.starter) == (1, 29500, "torchrun")
    # torchrun within a step of srun is what started this process.
    assert rank_of(2, 1, srun(1) | torchrun(2, 1)).starter == "torchrun"
    assert step_name(torchrun(2)) is None
    assert rank_of(1, 1, srun(1)) == rank_of(1, 1, torchrun(1)) == Rank()


@pytest.mark.parametrize("hosts", ["node1,node2", "n[1-3]", "a-b[07,09-12],c[1-2]", "gpu[003]"])
def test_the_first_host_of_a_list_is_lightnings(hosts: str) -> None:
    rank = rank_of(1, 2, srun(2, 0, nodes=2, SLURM_STEP_NODELIST=hosts))
    assert rank.address == SLURMEnvironment.resolve_root_node_address(hosts)


@pytest.mark.parametrize(
    ("devices", "nodes", "environ", "message"),
    [
        (2, 1, srun(1), "devices=2 needs 2 processes; srun has started 1 process.\n"
         "Start this command with srun --nodes=1 --ntasks=2, or use trainer.devices=1."),
        (1, 1, srun(2), "devices=1 needs 1 process; srun has started 2 processes.\n"
         "Start this command with srun --nodes=1 --ntasks=1, or use trainer.devices=2."),
        (4, 1, srun(4, nodes=2), "4 processes; srun has started 4 processes on 2 machines.\n"
         "Start this command with srun --nodes=1 --ntasks=4, or use trainer.devices=2 "
         "trainer.num_nodes=2."),
        (2, 2, srun(2), "devices=2 trainer.num_nodes=2 needs 4 processes on 2 machines; srun"),
        (2, 1, torchrun(4), "torchrun --nproc-per-node=2, or use trainer.devices=4."),
        (1, 1, torchrun(2), "torchrun has started 2 processes."),
        (2, 1, torchrun(1), "torchrun has started 1 process."),
    ],
)  # fmt: skip
def test_another_number_of_processes_than_devices_is_refused_once(
    devices: int, nodes: int, environ: Mapping[str, str], message: str
) -> None:
    with pytest.raises(DeviceError) as refusal:
        rank_of(devices, nodes, environ)
    assert message in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 2
    others = int(environ.get("WORLD_SIZE") or environ["SLURM_STEP_NUM_TASKS"]) - 1
    if others:
        with pytest.raises(SystemExit):
            rank_of(devices, nodes, {**environ, "SLURM_PROCID": str(others), "RANK": str(others)})


def test_all_gpus_are_counted_once_torch_is_there() -> None:
    alone = rank_of(-1, 1, {})
    assert alone.first
    assert alone.counted(-1, 1, gpus=1) == Rank()
    assert alone.counted(-1, 1, gpus=4).world == 4
    assert rank_of(-1, 1, srun(2, 1)).counted(-1, 1, gpus=2).number == 1
    with pytest.raises(DeviceError, match=r"devices=-1 needs 4 processes; srun has started 2"):
        rank_of(-1, 1, srun(2)).counted(-1, 1, gpus=4)
    assert rank_of(3, 1, {}).counted(3, 1, gpus=8).world == 3


def test_other_machines_are_not_waited_for_unless_something_has_started_them() -> None:
    with pytest.raises(DeviceError, match=r"(?s)num_nodes=2.*srun.*torchrun --nnodes=2.*nodes=1"):
        rank_of(1, 2, {"NODE_RANK": "0"})
    by_hand = {"MASTER_ADDR": "host", "MASTER_PORT": "5000", "NODE_RANK": "1"}
    rank = rank_of(2, 2, by_hand)
    assert (rank.number, rank.world, rank.first, rank.starts_others) == (2, 4, False, True)


def test_a_wrong_number_of_processes_is_refused_before_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom flair2_exp.cli.main import main\n"
        "try:\n    main(['model=unet', 'trainer.devices=2'])\n"
        "finally:\n    print({'torch', 'lightning', 'mlflow'} & sys.modules.keys())\n"
    )
    environ = {**os.environ, **srun(1), "PYTHONPATH": str(ROOT)}
    command = (sys.executable, "-c", code)
    ended = subprocess.run(
        command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stdout == "set()\n"
    assert ended.stderr.startswith("flair2-exp: trainer.devices=2 needs 2 processes; srun")
    assert not list(tmp_path.iterdir())
