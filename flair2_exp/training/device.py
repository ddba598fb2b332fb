"""Whether this machine has the devices that a run asks for, and how Lightning is to use them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from flair2_exp.config.training import TrainerConfig
from flair2_exp.errors import DeviceError
from flair2_exp.machine import cores, processes_at_most
from flair2_exp.ranks import Rank


def require_device(trainer: TrainerConfig, workers: int = 0) -> None:
    """Refuse what this machine lacks, before anything is read.

    Raises:
        DeviceError: No such device, too few of them, a precision that they do not compute in, more
            processes than the processor can run.
    """
    import torch

    _require_processes({"trainer.threads": trainer.threads or 0, "data.workers": workers})
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


def gpus() -> int:
    """Return how many processes `trainer.devices=-1` means: all GPUs of this machine."""
    import torch

    return max(1, torch.cuda.device_count())


def forget_unreadable_ranks() -> None:
    """Remove left-over ranks that are not numbers: Lightning reads them when it is imported."""
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
        if not os.environ.get(name, "0").isdecimal():
            del os.environ[name]


def devices_of(options: TrainerConfig, rank: Rank) -> dict[str, Any]:
    """Return the arguments of Lightning's trainer that say which processes train, and where.

    Lightning is told which process this is. It neither looks for a launcher's ranks, which may be
    another program's, nor starts processes, nor takes on a cluster's signals and requeueing.
    """
    from flair2_exp.training.batch_norm import SharedBatchNorms
    from flair2_exp.training.environment import RankEnvironment

    shared = options.sync_batchnorm and not rank.alone
    return {
        "accelerator": options.accelerator,
        "devices": rank.per_node,
        "num_nodes": options.num_nodes,
        "strategy": "auto" if rank.alone else options.strategy,
        "sync_batchnorm": shared,
        "plugins": [RankEnvironment(rank), *([SharedBatchNorms()] if shared else [])],
    }


def leave_group() -> None:
    """Leave the other processes of a training; the next training of this process has others."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
