from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_only

from flair2_exp.config.training import TrainerConfig
from flair2_exp.errors import DeviceError
from flair2_exp.ranks import Rank, rank_of
from flair2_exp.training import device
from flair2_exp.training.device import devices_of, require_device


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "cores", lambda: 4)
    monkeypatch.setattr(device, "processes_at_most", lambda: 64)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def two_old_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "an old card")


def _require(accelerator: Any, devices: int, precision: Any) -> None:
    require_device(TrainerConfig(accelerator=accelerator, devices=devices, precision=precision))


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("accelerator", "devices", "precision", "message"),
    [
        ("gpu", 1, "32-true", "no CUDA device.*trainer=cpu"),
        ("cuda", -1, "32-true", "no CUDA device"),
        ("mps", 1, "32-true", "no Apple GPU"),
        ("cpu", 1, "16-mixed", "needs a GPU"),
        ("auto", 1, "16-mixed", "needs a GPU"),
        ("cpu", -1, "32-true", "how many processes"),
        ("auto", -1, "32-true", "how many processes"),
    ],
)
def test_what_a_machine_without_gpu_lacks_is_refused(
    accelerator: str, devices: int, precision: str, message: str
) -> None:
    with pytest.raises(DeviceError, match=message):
        _require(accelerator, devices, precision)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
def test_the_processor_takes_its_own_precisions(precision: str) -> None:
    _require("auto", 1, precision)
    _require("cpu", 2, precision)


@pytest.mark.usefixtures("no_gpu")
def test_more_processes_than_the_processor_can_run_are_refused() -> None:
    with pytest.raises(DeviceError, match=r"devices=999.*has 4 cores. Use trainer.devices=1 to 4"):
        require_device(TrainerConfig(accelerator="cpu", devices=999))
    with pytest.raises(DeviceError, match=r"trainer.threads=4000.*Use trainer.threads=64 at most"):
        require_device(TrainerConfig(threads=4000))
    with pytest.raises(DeviceError, match=r"data.workers=1000.*Use data.workers=64 at most"):
        require_device(TrainerConfig(), workers=1000)
    require_device(TrainerConfig(threads=64), workers=64)


@pytest.mark.usefixtures("two_old_gpus")
def test_too_many_devices_and_missing_bfloat16_are_refused() -> None:
    for accelerator in ("auto", "gpu", "cuda"):
        _require(accelerator, 2, "16-mixed")
        _require(accelerator, -1, "32-true")
        with pytest.raises(DeviceError, match=r"this machine has 2"):
            _require(accelerator, 3, "32-true")
    _require("cpu", 3, "32-true")
    with pytest.raises(DeviceError, match=r"an old card has no bfloat16"):
        _require("gpu", 1, "bf16-mixed")


LEFT_OVER = [
    {"NODE_RANK": "1"},
    {"GROUP_RANK": "1"},
    {"LOCAL_RANK": "1"},
    {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "elsewhere", "MASTER_PORT": "1"},
    {"TORCHELASTIC_RUN_ID": "1", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"},
    {"SLURM_PROCID": "1"},
    {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"},
    {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_JOB_NAME": "train"},
    {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4", "SLURM_JOB_NAME": "train"},
    {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"},
    {"PMI_RANK": "1", "PMI_SIZE": "2"},
    {"JSM_NAMESPACE_RANK": "1", "JSM_NAMESPACE_SIZE": "2", "LSB_JOBID": "1"},
]
"""What containers, shells and schedulers leave in the environment of other programs."""


@pytest.fixture
def _own_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # put back at the end


@pytest.mark.usefixtures("_own_rank")
@pytest.mark.parametrize("left", LEFT_OVER, ids=" ".join)
@pytest.mark.parametrize("strategy", ["auto", "ddp"])
def test_a_run_on_one_device_is_its_first_process_whatever_is_left_in_the_environment(
    strategy: Any, left: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    rank_zero_only.rank = 1  # as Lightning's import reads it
    options = TrainerConfig(accelerator="cpu", strategy=strategy)
    rank = rank_of(1, 1)
    trainer = Trainer(**devices_of(options, rank), logger=False, enable_checkpointing=False)
    assert (trainer.global_rank, trainer.world_size, rank_zero_only.rank) == (0, 1, 0)


@pytest.mark.usefixtures("_own_rank")
@pytest.mark.parametrize("left", [{}, *LEFT_OVER], ids=str)
def test_lightning_takes_the_rank_that_it_is_given_and_starts_no_process(
    left: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    options = TrainerConfig(accelerator="cpu", devices=2, num_nodes=2, sync_batchnorm=True)
    rank = Rank(number=3, world=4, local=1, per_node=2, node=1, address="host", port=5000)
    trainer = Trainer(**devices_of(options, rank), logger=False, enable_checkpointing=False)
    assert (trainer.global_rank, trainer.local_rank, trainer.world_size) == (3, 1, 4)
    assert rank_zero_only.rank == 3
    environment = trainer.strategy.cluster_environment
    assert environment.creates_processes_externally
    assert (environment.main_address, environment.main_port) == ("host", 5000)
