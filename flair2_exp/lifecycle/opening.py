"""What a run says before it begins: what it trains, from what, on what, and where results go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from flair2_exp.config.experiment import Config
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.machine import cores

if TYPE_CHECKING:
    from lightning import Trainer

    from flair2_exp.data.datamodule import FlairDataModule
    from flair2_exp.lifecycle.prepared import Prepared
    from flair2_exp.tracking.run import Run

_LARGE: Final = 5_000_000
"""Parameters of a network beyond which `preset=tiny` is smaller: U-T&T has 1.4 million there."""

_SMALL: Final = (
    "That is a full-size network on a processor. To see whether all works, preset=tiny trains a "
    "small one for a few epochs, in minutes; the scores to compare need a GPU."
)


def smaller(config: Config, parameters: int) -> str:
    """Return what to propose where a training on the processor takes long; empty: nothing.

    Args:
        config: The experiment's.
        parameters: Of its network.
    """
    return _SMALL if config.train and parameters > _LARGE else ""


def opening(
    config: Config,
    prepared: Prepared,
    trainer: Trainer,
    folder: RunFolder,
    run: Run,
) -> str:
    """Return what a run is, one line for each fact.

    Args:
        config: The experiment's.
        prepared: The run's parts.
        trainer: With its devices.
        folder: The run's.
        run: Its MLflow run, or what stands in for it.
    """
    from flair2_exp.models.registry import count_parameters

    model = prepared.task.model
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    whole = count_parameters(model)
    frozen = "" if trained == whole else f", {trained:,} of them trained"
    facts = {
        "run": f"{config.name}, seed {config.seed}",
        "network": f"{config.model.name}, {whole:,} parameters{frozen}",
        "weights": _weights(config, prepared.start),
        "data": _data(config, prepared.data),
        "device": _device(trainer),
        "epochs": _epochs(config, prepared.epochs_done),
        "folder": str(folder),
        "MLflow": f"run {run.run_id} in experiment {config.tracking.experiment}"
        if run.run_id
        else "off",
    }
    return "\n".join(f"{name:<9} {fact}" for name, fact in facts.items() if fact)


def _weights(config: Config, start: Path | None) -> str:
    """Return from which weights the network begins."""
    if start is not None:
        return f"of {start}, from which the run resumes"
    if config.checkpoint or config.model.weights:
        return f"of {config.checkpoint or config.model.weights}"
    if not config.model._target_.startswith("flair2_exp."):
        return "as the network's own class sets them"
    if "aerial" not in config.reads:
        return "random"
    named = {None: "random weights", "imagenet": "ImageNet weights"}
    given = config.model.encoder_weights
    rest = "all else from random ones" if given is not None else "as all else"
    return f"encoder {config.model.encoder} from {named.get(given, given)}, {rest}"


def _data(config: Config, data: FlairDataModule) -> str:
    """Return the data set, its patches by part, and what the run leaves out of them."""
    trainer, name = config.trainer, config.dataset.name
    if config.is_synthetic:
        name = f"{name} (synthetic)"
    words = {"train": "training", "validation": "validation", "test": "test"}
    counts = ", ".join(f"{data.counts[part]:,} {words[part]}" for part in config.parts)
    limits = {
        "train": trainer.limit_train_batches,
        "validation": trainer.limit_val_batches,
        "test": trainer.limit_test_batches,
    }
    shown = [f"{limits[part]} of {words[part]}" for part in config.parts if limits[part]]
    limited = f"; no more batches than {', '.join(shown)}" if shown else ""
    return f"{name}: {counts} patches of {data.patch_size} px, split {config.split.name}{limited}"


def _device(trainer: Trainer) -> str:
    """Return where the network is trained, with how many threads, and in which precision."""
    import torch

    device, processes = trainer.strategy.root_device, trainer.world_size
    kind = "processor"
    if device.type == "cuda":
        kind = torch.cuda.get_device_name(device)
    elif device.type != "cpu":
        kind = f"Apple GPU ({device.type})"
    several = f"{processes} x " if processes > 1 else ""
    threads, usable = torch.get_num_threads(), cores()
    return (
        f"{several}{kind}, {threads} thread{'s' * (threads != 1)} "
        f"({usable} core{'s' * (usable != 1)} to use), precision {trainer.precision}"
    )


def _epochs(config: Config, done: int) -> str:
    """Return how many epochs are trained, and how many of them were before."""
    if not config.train:
        return "0: the weights are tested as they are"
    stopping = config.callbacks.early_stopping
    patience = stopping.patience if stopping is not None else 0
    early = f", or until {patience} in a row are no better" if patience else ""
    resumed = f"; {done} {'is' if done == 1 else 'are'} done" if done else ""
    return f"{config.trainer.max_epochs}, batches of {config.data.batch_size}{early}{resumed}"
