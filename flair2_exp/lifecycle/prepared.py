"""The parts of a run, checked and built before anything is written, the quickest check first."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flair2_exp.compat import import_torch
from flair2_exp.config.experiment import Config
from flair2_exp.errors import CheckpointError
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import RunRecord
from flair2_exp.machine import cores

if TYPE_CHECKING:
    from flair2_exp.data.datamodule import FlairDataModule
    from flair2_exp.data.normalisation import Normalisation
    from flair2_exp.tracking.store import Store
    from flair2_exp.training.task import SegmentationTask

log = logging.getLogger(__name__)


@dataclass
class Prepared:
    """A run that has passed every check and has written nothing yet.

    Attributes:
        data: After `setup`.
        task: With the network.
        store: Of MLflow; None where this process does not write there.
        start: The checkpoint of this run from which training resumes; None: it begins.
        epochs_done: Epochs that were trained before: by this run, or by that of `checkpoint`.
    """

    data: FlairDataModule
    task: SegmentationTask
    store: Store | None
    start: Path | None
    epochs_done: int


def prepare(
    config: Config,
    folder: RunFolder,
    earlier: RunRecord | None,
    *,
    first: bool,
    processes: int = 1,
    extended: bool = False,
) -> Prepared:
    """Check server, data, device, checkpoint and network, in this order, and build them.

    A sample is written last, when all else is well.

    Args:
        config: The experiment's.
        folder: The run's.
        earlier: What the folder says of an earlier process's part of this run.
        first: Whether this process writes: no other opens the MLflow store.
        processes: Of the training, on this machine.
        extended: Whether the run is to be trained for more epochs than it was begun with.

    Raises:
        FlairError: The first thing that is wrong.
    """
    from flair2_exp.data.source import open_source
    from flair2_exp.lifecycle import assembly

    # Store and data are looked at before torch is imported; the store is made when all is well.
    if first:
        assembly.require_store(config)
    sample = config.dataset.sample  # its patch size is known before it is written
    source = open_source(config.data_groups, config.reads) if sample is None else None
    import_torch()
    from flair2_exp.training.checkpoint import read_checkpoint, require_same_model
    from flair2_exp.training.device import require_device

    require_device(config.trainer, config.data.workers)
    checkpoint = Path(config.checkpoint) if config.checkpoint else None
    content = read_checkpoint(checkpoint) if checkpoint is not None else None
    recorded = _recorded_normalisation(config, checkpoint, content)
    _settle_libraries(config, processes)

    data: FlairDataModule | None = None
    if sample is None:
        data = assembly.build_data(config, normalisation=recorded, source=source)
        patch_size = data.patch_size
    else:
        patch_size = sample.patch_size
    spec = assembly.network_spec(config, patch_size, source)
    assembly.require_parts(config, spec, source)
    if checkpoint is not None and content is not None:
        require_same_model(checkpoint, content, spec)

    trained = earlier is not None and bool(earlier.training)
    start = resume_point(folder) if earlier is not None and not trained else None
    # Weights that a checkpoint will replace are not read, let alone downloaded.
    fresh = start is None and not trained
    if data is None and assembly.needs_statistics(config):
        data = assembly.build_data(config, normalisation=recorded)
    task = assembly.build_task(config, spec, data=data, fresh=fresh, source=source)

    done = int(earlier.training.get("train/epochs", 0)) if earlier is not None else 0
    origin = start or (checkpoint if fresh else None)
    if origin is not None and config.train:
        done = _epochs_done(config, origin, task, own=start is not None and not extended)
    data = data or assembly.build_data(config, normalisation=recorded)
    store = assembly.open_store(config) if first else None
    return Prepared(data, task, store, start, done)


def _recorded_normalisation(
    config: Config, checkpoint: Path | None, content: Mapping[str, Any] | None
) -> Normalisation | None:
    """Return that of a trained network, whose statistics stay its own; None where there is none."""
    from flair2_exp.lifecycle.assembly import needs_statistics, recorded_normalisation
    from flair2_exp.models.tensors import read_file

    if checkpoint is not None and content is not None:
        return recorded_normalisation(config, checkpoint, content)
    if not config.model.weights or config.train or not needs_statistics(config):
        return None
    path = Path(config.model.weights)
    weights = read_file(path)
    if isinstance(weights, dict) and "hyper_parameters" in weights:
        return recorded_normalisation(config, path, weights)
    log.warning("%s holds no statistics: those of these training patches are used", path)
    return None


def _epochs_done(config: Config, origin: Path, task: SegmentationTask, *, own: bool) -> int:
    """Return how many epochs a checkpoint had trained; refuse one that this run cannot train on.

    Args:
        config: The experiment's.
        origin: The checkpoint.
        task: That is to be trained.
        own: Whether it is of this run, by the same config.

    Raises:
        CheckpointError: As of `require_training_state`.
    """
    from flair2_exp.compat import epochs_trained
    from flair2_exp.training.checkpoint import (
        read_checkpoint,
        require_training_state,
        warn_of_schedule,
    )

    epochs, content = config.trainer.max_epochs, read_checkpoint(origin)
    if not own:
        require_training_state(origin, content, task.hparams, epochs=epochs)
        warn_of_schedule(origin, content, task.hparams, epochs=epochs)
    return epochs_trained(content)


_EXPECTED_WARNINGS: Final = (
    # Few batches per epoch are expected on a small data set, and so is a processor on request.
    ".*does not have many workers.*",
    ".*smaller than the logging interval.*",
    "GPU available but not used.*",
    # A run that resumes finds its own checkpoints.
    "Checkpoint directory .* exists and is not empty.*",
    # A run from another's checkpoint keeps its own best one.
    "The dirpath has changed.*",
    # What several devices log is the same on each; and Lightning 2.6 gathers in an older way.
    ".*to accumulate the metric across devices.*",
    ".*all_gather is deprecated.*",
    # A training does not need srun (`ranks.py`).
    "The `srun` command is available.*",
    # Lightning 2.6 asks torch 2.15 in a way that the latter deprecates; nothing a user can mend.
    ".*treespec, LeafSpec.*",
)


def _settle_libraries(config: Config, processes: int) -> None:
    """Set seeds and threads, and turn the libraries' chatter off."""
    import torch
    from lightning import seed_everything

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Its retries, a line each; what comes of them is raised.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    for message in _EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    elif "OMP_NUM_THREADS" not in os.environ:  # by which a launcher or a user shares the cores
        torch.set_num_threads(max(1, min(torch.get_num_threads(), cores() // processes)))
    seed_everything(config.seed, workers=True, verbose=False)


def resume_point(folder: RunFolder) -> Path | None:
    """Return the newest readable checkpoint of an interrupted run; None where there is none yet."""
    from flair2_exp.training.checkpoint import read_checkpoint

    for path in (folder.last, folder.previous):
        if path.exists():
            try:
                read_checkpoint(path)
            except CheckpointError as error:
                log.warning("%s", error)
            else:
                return path
    return None


def epochs_of(checkpoint: Path) -> int | None:
    """Return how many epochs a checkpoint has trained; None where that cannot be read now."""
    from flair2_exp.compat import epochs_trained
    from flair2_exp.training.checkpoint import read_checkpoint

    try:
        return epochs_trained(read_checkpoint(checkpoint))
    except (CheckpointError, KeyError, OSError):
        return None
