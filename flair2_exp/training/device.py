"""Whether this machine has the device that a run asks for, and which of its processes this is."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from flair2_exp.config.training import TrainerConfig, on_one_device
from flair2_exp.errors import DeviceError
from flair2_exp.machine import cores, processes_at_most


def require_device(trainer: TrainerConfig, workers: int = 0) -> None:
    """Refuse what this machine lacks, before anything is read.

    Args:
        trainer: Where to train.
        workers: Processes that read, per device (`data.workers`).

    Raises:
        DeviceError: No such device, too few of them, a precision that they do not compute in, more
            processes than the processor can run, or other machines that nothing has started.
    """
    import torch

    _require_processes({"trainer.threads": trainer.threads or 0, "data.workers": workers})
    if trainer.num_nodes > 1:
        _require_cluster(trainer.num_nodes)

    accelerator, devices, precision = trainer.accelerator, trainer.devices, trainer.precision
    gpus = torch.cuda.device_count()
    apple = torch.backends.mps.is_available()
    if accelerator == "cuda" or (accelerator == "gpu" and not apple):
        if gpus == 0:
            raise DeviceError(
                f"trainer.accelerator={accelerator}: this machine has no CUDA device that torch "
                f"{torch.__version__} can use. Run with trainer=cpu, or on a machine with a GPU."
            )
    elif accelerator == "mps" and not apple:
        raise DeviceError(
            "trainer.accelerator=mps: this machine has no Apple GPU. Run with trainer=cpu."
        )
    on_gpu = accelerator != "cpu" and (gpus > 0 or apple)
    if devices == -1 and not on_gpu:
        raise DeviceError(
            "trainer.devices=-1 means all GPUs; on the processor say how many processes, as "
            "trainer.devices=1."
        )
    if not on_gpu and devices > cores():
        raise DeviceError(
            f"trainer.devices={devices}: each is a process on the processor, which has {cores()} "
            f"cores. Use trainer.devices=1 to {cores()}."
        )
    if on_gpu and devices > max(1, gpus):  # of an Apple machine's, torch knows one
        raise DeviceError(
            f"trainer.devices={devices}: this machine has {max(1, gpus)}. "
            f"Use trainer.devices={max(1, gpus)}."
        )
    if precision == "16-mixed" and not on_gpu:
        raise DeviceError(
            "trainer.precision=16-mixed needs a GPU: the processor trains in 32-true or bf16-mixed."
        )
    if precision.startswith("bf16") and on_gpu and gpus and not torch.cuda.is_bf16_supported():
        raise DeviceError(
            f"trainer.precision={precision}: {torch.cuda.get_device_name()} has no bfloat16. Use "
            "trainer.precision=16-mixed."
        )
    if precision == "64-true" and on_gpu and apple and not gpus:
        raise DeviceError("trainer.precision=64-true: Apple GPUs compute in 32 bits at most.")


def _require_processes(numbers: Mapping[str, int]) -> None:
    most = processes_at_most()
    for name, number in numbers.items():
        if number > most:
            raise DeviceError(
                f"{name}={number}: this machine has {cores()} cores. Use {name}={most} at most."
            )


def _require_cluster(nodes: int) -> None:
    """Refuse to wait for processes of other machines that nobody has started."""
    from lightning.fabric.plugins.environments.lsf import LSFEnvironment
    from lightning.fabric.plugins.environments.mpi import MPIEnvironment
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    kinds = (LSFEnvironment, MPIEnvironment, SLURMEnvironment, TorchElasticEnvironment)
    by_hand = {"MASTER_ADDR", "NODE_RANK"} <= os.environ.keys()
    if not by_hand and not any(kind.detect() for kind in kinds):
        raise DeviceError(
            f"trainer.num_nodes={nodes}: nothing has started this command on the other machines, "
            "and it would wait for them for ever.\n"
            f"Start it with srun or `torchrun --nnodes={nodes}`, or use trainer.num_nodes=1."
        )


def is_first_process(options: TrainerConfig) -> bool:
    """Return whether this process writes a run's results: the one to which Lightning gives rank 0.

    A run on one device is its own first process, whatever ranks another program left in the
    environment; Lightning is not even loaded.

    Raises:
        DeviceError: The devices are not there, or what is left in the environment would let the
            processes wait for each other.
    """
    if on_one_device(options):
        return True
    require_device(options)
    from lightning import Trainer

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    try:
        trainer = Trainer(
            **devices_of(options),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except Exception as error:  # Lightning's own check of the environment, of many types
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DeviceError(f"trainer.devices={options.devices}: Lightning says: {reason}") from error
    _require_sound_ranks(trainer, options)
    return trainer.is_global_zero


def forget_unreadable_ranks() -> None:
    """Remove left-over ranks that are not numbers: Lightning reads them when it is imported."""
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
        if not os.environ.get(name, "0").isdecimal():
            del os.environ[name]


def devices_of(options: TrainerConfig) -> dict[str, Any]:
    """Return the arguments of Lightning's trainer that say which processes train, and where.

    On one device Lightning neither looks for a launcher's ranks nor takes on a cluster's signals,
    both of which may be another program's.
    """
    arguments: dict[str, Any] = {
        "accelerator": options.accelerator,
        "devices": options.devices,
        "num_nodes": options.num_nodes,
        "strategy": options.strategy,
    }
    if on_one_device(options):
        from lightning.fabric.plugins.environments.lightning import LightningEnvironment

        alone = LightningEnvironment()
        alone.set_global_rank(0)  # it was read from the environment when Lightning was imported
        arguments |= {"strategy": "auto", "plugins": [alone]}
    return arguments


def _require_sound_ranks(trainer: Any, options: TrainerConfig) -> None:
    """Refuse ranks of which no training can come.

    Raises:
        DeviceError: This process would be none of the training's, or would wait for others that
            nobody has started.
    """
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment

    names = ("NODE_RANK", "GROUP_RANK", "LOCAL_RANK")
    left = [name for name in names if name in os.environ]
    environment = getattr(trainer.strategy, "cluster_environment", None)
    waits = isinstance(environment, LightningEnvironment) and (
        "LOCAL_RANK" in left and "MASTER_PORT" not in os.environ
    )
    if waits or trainer.global_rank >= trainer.world_size:
        raise DeviceError(
            f"{' '.join(f'{name}={os.environ[name]}' for name in left)} in the environment: no "
            f"process of trainer.devices={options.devices} trainer.num_nodes={options.num_nodes} "
            f"that a launcher has started.\nIf another program left that, unset {' '.join(left)}."
        )
