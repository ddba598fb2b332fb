"""The checkpoints that training writes: read safely, refused where they are of another network."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from flair2_exp.compat import epochs_trained, stopped_early, within_epoch
from flair2_exp.config.fields import build, plain
from flair2_exp.config.training import OptimizerConfig, SchedulerConfig
from flair2_exp.errors import CheckpointError, FlairError
from flair2_exp.models.registry import NetworkSpec
from flair2_exp.models.tensors import read_file
from flair2_exp.registry import locate
from flair2_exp.training.schedules import build_schedule, is_planned, rates_of
from flair2_exp.values import differences, flatten, shown

log = logging.getLogger(__name__)


_ANEW = "Start anew from its weights with model.weights=PATH."


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint of this package, on the processor.

    Args:
        path: A file that a run of this package wrote.

    Raises:
        CheckpointError: It is missing, torn, asks for more than tensors and plain values, or was
            not written by this package.
    """
    content = read_file(path)
    if not isinstance(content, dict) or not {"state_dict", "hyper_parameters"} <= content.keys():
        raise CheckpointError(
            f"{path} is not a checkpoint of this package (no hyper-parameters in it).\nReleased "
            "baseline weights are loaded with model.weights=PATH."
        )
    return content


def require_same_model(path: Path, content: Mapping[str, Any], wanted: NetworkSpec) -> None:
    """Refuse a checkpoint of another network than the config describes.

    Options that do not decide the network's results may differ (`NetworkSpec.deciding`).

    Raises:
        CheckpointError: The networks differ; the message lists how. Or the checkpoint describes
            none that this version builds.
    """
    try:
        own = NetworkSpec.of_plain(content["hyper_parameters"]["network"]).deciding()
    except (KeyError, TypeError, AttributeError, ValueError, FlairError) as error:
        raise CheckpointError(
            f"{path} describes no network that this version of the package builds ({error}).\n"
            "Weights alone are loaded with model.weights=PATH."
        ) from error
    changes = differences(own, wanted.deciding())
    if "model._target_" in changes:  # then their options are others, too
        changes = {"model._target_": changes["model._target_"]}
    if changes:
        raise CheckpointError(
            f"{path} is of another network (its value -> the config's): {shown(changes)}.\n"
            "Use the options that it was trained with."
        )


def require_training_state(
    path: Path, content: Mapping[str, Any], options: Mapping[str, Any], *, epochs: int
) -> None:
    """Refuse to train on from a checkpoint that has nothing left to train, or trained otherwise.

    The optimizer resumes with all that the checkpoint holds, its learning rate too: other options
    of the config would be silently ignored.

    Args:
        path: Named in the message.
        content: What `read_checkpoint` returned.
        options: The hyper-parameters of the task that is to resume.
        epochs: `trainer.max_epochs`.

    Raises:
        CheckpointError: It holds no state of a training, or of another optimizer, or of one that
            has ended.
    """
    try:
        trained = epochs_trained(content)
        changes = differences(_course(content["hyper_parameters"]), _course(options))
    except KeyError as error:
        raise CheckpointError(
            f"{path} holds no training to resume (no {error}).\n{_ANEW}"
        ) from error
    if changes:
        raise CheckpointError(
            f"{path} would resume with its own options (its value -> the config's): "
            f"{shown(changes)}.\nUse the options that it was trained with. {_ANEW}"
        )
    schedule = build(SchedulerConfig, options["scheduler"])
    planned = content.get("plan", {}).get("epochs", epochs)
    if planned != epochs and is_planned(schedule):
        raise CheckpointError(
            f"{path}: its schedule {schedule._target_} was made for {planned} epochs, "
            f"trainer.max_epochs={epochs}.\nUse trainer.max_epochs={planned}. {_ANEW}"
        )
    if stopped_early(content):
        raise CheckpointError(f"{path} had stopped early, and would at once again.\n{_ANEW}")
    if trained >= epochs:
        raise CheckpointError(
            f"{path} has trained {trained} epochs, trainer.max_epochs={epochs}: ask for more in "
            f"all, or test it with train=false.\n{_ANEW}"
        )


def require_same_devices(path: Path, content: Mapping[str, Any], devices: int) -> None:
    """Refuse to resume within an epoch on another number of devices: its batches are divided.

    From an epoch's start it is exact: all that comes is as on so many devices.

    Raises:
        CheckpointError: The checkpoint was written between two batches on other devices.
    """
    before = len(content.get("epoch_sums", ())) or devices
    if before == devices:
        return
    plural = "s" if before > 1 else ""
    if within_epoch(content):
        raise CheckpointError(
            f"{path} was written within an epoch, whose batches {before} device{plural} had "
            f"divided; {devices} cannot take it up.\nResume with trainer.devices={before}; from an "
            "epoch's end, any number can."
        )
    log.warning(
        "%s was trained on %d device%s, and resumes on %d, exactly from its epoch's end",
        path, before, plural, devices,
    )  # fmt: skip


def warn_of_schedule(
    path: Path, content: Mapping[str, Any], options: Mapping[str, Any], *, epochs: int
) -> None:
    """Say where the learning rate goes from a checkpoint whose schedule had ended, or was another.

    Args:
        path: Named in the message.
        content: What `read_checkpoint` returned.
        options: The hyper-parameters of the task that is to resume.
        epochs: `trainer.max_epochs`.
    """
    rate = float(options["optimizer"]["lr"])
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=rate)
    steps = content.get("plan", {}).get("steps_per_epoch", 1)
    schedule = build_schedule(
        optimizer, build(SchedulerConfig, options["scheduler"]), epochs, steps
    )
    if not isinstance(schedule, LambdaLR):
        return
    begin = epochs_trained(content)
    before = float(content["optimizer_states"][0]["param_groups"][0]["lr"])
    first, last = (rates_of(schedule, step)[0] for step in (begin * steps, epochs * steps - 1))
    if math.isclose(first, before) and (first != last or first == rate):
        return
    log.warning(
        "%s: its learning rate had reached %.3g; by the schedule of trainer.max_epochs=%d it is "
        "%.3g in epoch %d and %.3g in the last.\nA schedule from its beginning: model.weights=%s "
        "in place of checkpoint=.",
        path, before, epochs, first, begin + 1, last, path,
    )  # fmt: skip


def _course(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a task's options is in its optimizer's and schedule's state, by dotted name.

    Schedules over the same class of torch's keep the same state. Of those that follow from the
    count of steps alone and of a plateau, other options may follow; of another, they are in its
    state.
    """
    optimizer = plain(build(OptimizerConfig, options["optimizer"]))
    schedule = build(SchedulerConfig, options["scheduler"])
    kind = locate(schedule._target_, LRScheduler, "scheduler._target_")
    base = next(each for each in kind.__mro__ if each.__module__.startswith("torch."))
    course: dict[str, Any] = {"optimizer": optimizer, "scheduler": base.__name__}
    if schedule.interval != "epoch":
        course["scheduler.interval"] = schedule.interval
    if not issubclass(kind, LambdaLR | ReduceLROnPlateau):
        course["scheduler.options"] = plain(schedule.options)
    return flatten(course)
