"""Whether this machine has the device and the precision that a run asks for."""

from __future__ import annotations

import os
from collections.abc import Mapping

from flair2_exp.config.training import TrainerConfig
from flair2_exp.errors import DeviceError, nearest
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


def require_strategy(strategy: str) -> None:
    """Refuse a strategy that Lightning does not have.

    Args:
        strategy: Lightning's name, as `ddp`.

    Raises:
        DeviceError: There is none of that name.
    """
    from lightning.pytorch.strategies import StrategyRegistry

    strategies = ["auto", *StrategyRegistry.available_strategies()]
    if strategy not in strategies:
        raise DeviceError(
            f"trainer.strategy={strategy}: no such strategy; {nearest(strategy, strategies)}"
        )
