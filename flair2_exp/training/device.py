"""Whether this machine has the device and the precision that a run asks for."""

from __future__ import annotations

from flair2_exp.config.training import TrainerConfig
from flair2_exp.errors import DeviceError, nearest


def require_device(trainer: TrainerConfig) -> None:
    """Refuse what this machine lacks, before anything is read.

    Raises:
        DeviceError: No such device, too few of them, or a precision that they do not compute in.
    """
    import torch

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
