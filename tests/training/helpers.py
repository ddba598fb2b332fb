"""A task as a run builds it from a command line, and random patches to train it on."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, Trainer
from torch.utils.data import DataLoader, Dataset

from flair2_exp.lifecycle import assembly
from flair2_exp.training.task import SegmentationTask
from tests.configs import compose_config

PATCH = 64
SMALLEST = ("preset=debug", "model.decoder_channels=[16,8,8,8,8]", "s2_preproc.size=16")


def build_task(*overrides: str) -> SegmentationTask:
    """A small network's task, as a run builds it from a command line."""
    config = compose_config(*SMALLEST, *overrides)
    torch.manual_seed(config.seed)
    return assembly.build_task(config, assembly.network_spec(config, PATCH))


class Patches(Dataset[dict[str, Any]]):
    """Random patches with series of two or three dates."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        label = torch.randint(0, 13, (4, 4), generator=generator)
        label = label.repeat_interleave(PATCH // 4, 0).repeat_interleave(PATCH // 4, 1)
        padding = torch.arange(3) > 1 + index % 2
        series = torch.rand(3, 10, 16, 16, generator=generator)
        series[padding] = 0
        return {
            "image": torch.rand(5, PATCH, PATCH, generator=generator),
            "series": series,
            "days": torch.randint(-200, 200, (3,), generator=generator),
            "padding": padding,
            "metadata": torch.rand(45, generator=generator),
            "label": label,
            "satellite_label": label,
            "patch_id": f"IMG_{index}",
            "area": "D004_2021/Z1_NN",
        }


def loader(count: int = 4) -> DataLoader[dict[str, Any]]:
    """Batches of two patches."""
    return DataLoader(Patches(count), batch_size=2)


def trainer(*callbacks: Callback, **options: Any) -> Trainer:
    """A trainer on the processor that writes nothing by itself."""
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any("Checkpoint" in type(each).__name__ for each in callbacks),
        "num_sanity_val_steps": 0,
    }
    return Trainer(callbacks=list(callbacks), **{**quiet, **options})
