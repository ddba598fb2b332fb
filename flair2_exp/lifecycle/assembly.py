"""From a checked config to the parts of an experiment: data, network, task, trainer.

Each part receives the dataclasses of the groups that it works by, whole.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flair2_exp.config.experiment import Config, require_classes, require_patch_size
from flair2_exp.config.fields import plain
from flair2_exp.errors import CheckpointError, ConfigError
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import recorded_status
from flair2_exp.nomenclature import AERIAL_BANDS

if TYPE_CHECKING:
    from lightning import Callback, Trainer

    from flair2_exp.data.datamodule import FlairDataModule
    from flair2_exp.data.inputs import Inputs
    from flair2_exp.data.normalisation import Normalisation
    from flair2_exp.data.source import DataSource
    from flair2_exp.models.registry import NetworkSpec
    from flair2_exp.ranks import Rank
    from flair2_exp.signals import Interruption
    from flair2_exp.tracking.run import Run
    from flair2_exp.tracking.store import Store
    from flair2_exp.training.task import SegmentationTask

log = logging.getLogger(__name__)


def open_store(config: Config) -> Store | None:
    """Return the MLflow store of a run, a sweep or a search; None with `tracking=off`.

    Raises:
        TrackingError: It does not answer or cannot be written.
    """
    if not config.tracking.enabled:
        return None
    from flair2_exp.tracking import store

    uri = config.tracking.uri or store.local_uri(config.paths.mlflow)
    return store_at(
        uri,
        timeout=config.tracking.timeout,
        delivery_seconds=config.tracking.delivery_seconds,
    )


def store_at(uri: str, *, timeout: float = 8.0, delivery_seconds: float = 0.0) -> Store:
    """Return the MLflow store at an address, which learns from runs' folders how they ended.

    Raises:
        TrackingError: It does not answer or cannot be written.
    """
    from flair2_exp.tracking import store

    return store.open_store(
        uri, timeout=timeout, delivery_seconds=delivery_seconds, recorded=recorded_status
    )


def require_store(config: Config) -> None:
    """Refuse an MLflow store that could not be opened; nothing is made.

    Raises:
        TrackingError: As by `open_store`.
        ConfigError: `tracking.system_metrics=true` lacks its package.
    """
    if config.tracking.enabled:
        from flair2_exp.tracking import store
        from flair2_exp.tracking.system import require_psutil

        if config.tracking.system_metrics:
            require_psutil()
        uri = config.tracking.uri or store.local_uri(config.paths.mlflow)
        store.require_usable(uri, timeout=config.tracking.timeout)


def require_files(config: Config) -> None:
    """Refuse a config that names data or weights that are not there; nothing is opened.

    Raises:
        DataError: The data set is missing or incomplete.
        ConfigError: Another file is missing.
    """
    if config.dataset.sample is None:  # which is written at first use
        data_fingerprint(config)
    first_weights = config.model.encoder_weights if "aerial" in config.reads else None
    named = {
        "dataset.store": config.dataset.store,
        "split.file": config.split.file if config.split.name == "file" else None,
        "checkpoint": config.checkpoint,
        "model.weights": config.model.weights,
        "model.encoder_weights": None if first_weights == "imagenet" else first_weights,
    }
    for option, path in named.items():
        if path is not None and not Path(path).exists():
            raise ConfigError(f"{option}={path}: there is no such file.")


def data_fingerprint(config: Config) -> str:
    """Return the fingerprint of the data that a config names; empty where they do not exist yet.

    Raises:
        DataError: They are missing, incomplete, or give a split no patches.
    """
    from flair2_exp.data.fingerprint import fingerprint

    return fingerprint(config.data_groups, config.reads)


def build_data(
    config: Config,
    *,
    normalisation: Normalisation | None = None,
    parts: Sequence[str] | None = None,
    source: DataSource | None = None,
) -> FlairDataModule:
    """Return the data module, its index read and its splits known; write the sample at first use.

    Args:
        config: The experiment's.
        normalisation: That of a trained network; None: by the options and the data.
        parts: The parts that must not be empty; None: those that the experiment reads.
        source: The data set, where it is open.

    Raises:
        DataError: The data set is missing, incomplete, or gives a split no patches or batches.
        ConfigError: The patches' size does not suit the encoder.
    """
    from flair2_exp.data.datamodule import FlairDataModule

    dataset = config.dataset
    if dataset.store is not None:
        from flair2_exp.data.store import describe

        describe(Path(dataset.store))
    if config.split.name == "file":
        from flair2_exp.data.splits import read_names

        read_names(str(config.split.file))
    if dataset.sample is not None and dataset.root is not None:
        from flair2_exp.data.sample.tree import ensure_sample

        ensure_sample(dataset.root, dataset.sample)
    data = FlairDataModule(
        config.data_groups,
        reads=config.reads,
        seed=config.seed,
        parts=config.parts if parts is None else parts,
        normalisation=normalisation,
        source=source,
    )
    if dataset.check == "headers" and dataset.store is None:
        findings = data.source.require_sound()
        for finding in [each for each in findings if each.severity == "error"][:5]:
            log.warning("%s: %s", finding.path, finding.message)
    data.setup()
    data.require_whole_batches(abs(config.trainer.devices) * config.trainer.num_nodes)
    data.require_shared_memory(max(1, config.trainer.devices))
    require_patch_size(config, data.patch_size)
    require_classes(config, data.source.nomenclature)
    return data


def normalisation_of(config: Config, data: FlairDataModule | None) -> Normalisation:
    """Return by what the inputs are normalised; without data, by the options alone."""
    from flair2_exp.data.datamodule import FlairDataModule

    if data is None:  # which decide nothing: see `needs_statistics`
        data = FlairDataModule(config.data_groups, reads=config.reads)
    return data.normalisation


def inputs_of(config: Config, spec: NetworkSpec, source: DataSource | None = None) -> Inputs:
    """Return what the network's inputs are before they are scaled.

    Args:
        config: The experiment's.
        spec: Of the network.
        source: The data; None is FLAIR #2, whose patches all cover the same ground.
    """
    from flair2_exp.data.flair import PATCH_METRES
    from flair2_exp.data.inputs import Inputs

    image: dict[str, Any] = {
        "image_type": "uint8", "scale": 255.0, "resolution": PATCH_METRES / spec.patch_size
    }  # fmt: skip
    if source is not None:
        image = {
            "image_type": source.image_type.name,
            "scale": source.scale,
            "resolution": source.resolution,
        }
    return Inputs(
        bands=spec.band_names, **image, s2_preproc=config.s2_preproc, metadata=config.metadata
    )


def describe_data(
    config: Config, data: FlairDataModule, weights: Mapping[str, float]
) -> dict[str, Any]:
    """Return what the data set and its split are: kept with the run.

    Args:
        config: The experiment's.
        data: After `setup`.
        weights: By class, those of the loss.
    """
    areas = data.index.area_names[data.index.area]
    return {
        "name": config.dataset.name,
        "root": config.dataset.root,
        "fingerprint": data.fingerprint,
        "patch_size": data.patch_size,
        "patches": data.counts,
        "normalisation": data.normalisation.plain(),
        "class_weights": dict(weights),
        "domains": {
            name: sorted({area.split("/")[0] for area in areas[positions].tolist()})
            for name, positions in data.split.parts().items()
        },
    }


def needs_statistics(config: Config) -> bool:
    """Return whether the training patches' statistics decide how the experiment trains."""
    by_data = (
        config.data.normalisation if "aerial" in config.reads else "",
        config.s2_preproc.normalisation if "satellite" in config.reads else "",
    )
    weighted = config.train and config.loss.class_weighting != "none"
    return weighted or "dataset" in by_data


def recorded_normalisation(
    config: Config, checkpoint: Path, content: Mapping[str, Any]
) -> Normalisation:
    """Return by what the inputs of a checkpoint's network were normalised.

    Args:
        config: The experiment's.
        checkpoint: Named in the message.
        content: What `training.checkpoint.read_checkpoint` returned.

    Raises:
        CheckpointError: The config normalises otherwise, or other bands.
    """
    from flair2_exp.data.normalisation import Normalisation, imagenet

    recorded = Normalisation.of_plain(content["hyper_parameters"].get("normalisation"))
    kinds = {"data": config.data.normalisation, "s2_preproc": config.s2_preproc.normalisation}
    inputs = {"data": ("aerial", recorded.image), "s2_preproc": ("satellite", recorded.series)}
    for node, (name, moments) in inputs.items():
        if name not in config.reads:
            continue
        kind = kinds[node]
        same = (moments is None) == (kind == "none")
        named = config.data.bands or (moments.bands if moments else ())  # null: all of the data's
        if kind == "imagenet":
            same = moments == imagenet(named)
        if not same:
            trained = "none" if moments is None else "that of its training data"
            raise CheckpointError(
                f"{node}.normalisation={kind}: {checkpoint} was trained with another, "
                f"{trained}.\nUse {node}.normalisation={'none' if moments is None else 'dataset'}."
            )
        if node == "data" and moments is not None and moments.bands != named:
            raise CheckpointError(
                f"data.bands=[{','.join(named)}]: {checkpoint} was trained with "
                f"others.\nUse data.bands=[{','.join(moments.bands)}]."
            )
    return recorded


def loss_options(config: Config, data: FlairDataModule | None) -> dict[str, Any]:
    """Return the options of the loss as plain values, with a weight for every class.

    Args:
        config: The experiment's.
        data: Whose training pixels count with `loss.class_weighting`; None: they are not weighed.
    """
    values: dict[str, Any] = plain(config.loss)
    kind = config.loss.class_weighting
    if data is None or kind == "none":
        return values
    from flair2_exp.data.statistics import class_weights

    named = config.loss.class_weights
    pixels = data.statistics.pixels
    counted = {name for name in pixels if named.get(name, 1.0) > 0}
    by_frequency = class_weights(kind, pixels, counted)
    weights = {name: each * named.get(name, 1.0) for name, each in by_frequency.items()}
    log.info("class weights: %s", ", ".join(f"{n} {each:.3g}" for n, each in weights.items()))
    return values | {"class_weights": weights}


def network_spec(config: Config, patch_size: int, source: DataSource | None = None) -> NetworkSpec:
    """Return the network's description in plain values.

    Args:
        config: The experiment's.
        patch_size: Aerial pixels on a side of a patch.
        source: The data; None is FLAIR #2, whose bands and classes the config knows.
    """
    from flair2_exp.models.registry import NetworkSpec

    bands, classes = config.data.bands or AERIAL_BANDS, int(config.data.classes)
    if source is not None:
        bands, classes = config.data.bands or source.bands, len(source.nomenclature.classes)
    return NetworkSpec(
        model=config.model,
        utae=config.utae,
        fusion=config.fusion,
        metadata=config.metadata,
        bands=len(bands),
        band_names=tuple(bands),
        classes=classes,
        patch_size=patch_size,
        series_size=config.s2_preproc.size,
    )


FLAIR_PATCH: Final = 512
"""Pixels on a side of FLAIR #2's patches; a run takes the size from its files."""


def require_feasible(config: Config, *, devices: bool = True) -> None:
    """Refuse networks, optimizers and schedules that do not exist or do not take their options.

    Args:
        config: The experiment's.
        devices: Whether this machine is the one that trains, so that it must have the devices.

    Raises:
        FlairError: The first thing that is wrong.
    """
    from flair2_exp.training.device import require_device

    if devices:
        require_device(config.trainer, config.data.workers)
    require_parts(config, *foreseen_network(config))


def foreseen_network(config: Config) -> tuple[NetworkSpec, DataSource | None]:
    """Return the network's description as far as it is known before FLAIR #2's files are read.

    Args:
        config: The experiment's.

    Returns:
        The description, and the data where they are not FLAIR #2's.

    Raises:
        FlairError: Such data cannot be opened, or do not go with the config.
    """
    sample = config.dataset.sample
    if config.dataset.is_flair:
        return network_spec(config, sample.patch_size if sample else FLAIR_PATCH), None
    from flair2_exp.data.source import open_source

    source = open_source(config.data_groups, config.reads)
    require_patch_size(config, source.patch_size)
    require_classes(config, source.nomenclature)
    return network_spec(config, source.patch_size, source), source


def require_parts(config: Config, spec: NetworkSpec, source: DataSource | None = None) -> None:
    """Refuse parts that do not exist or do not take their options, the network's among them.

    Args:
        config: The experiment's.
        spec: Of the network.
        source: The data; None is FLAIR #2, whose bands and classes the config knows.

    Raises:
        FlairError: The first thing that is wrong.
    """
    from flair2_exp.training.feasible import require_feasible

    require_feasible(
        spec,
        config.optimizer,
        config.scheduler,
        config.loss,
        config.trainer.max_epochs,
        source.nomenclature if source else None,
        config.metric,
        config.callbacks,
    )
    if config.train and config.aug.active:
        from flair2_exp.data.augment import build_augmentation

        build_augmentation(config.aug, spec.band_names)
    if config.tracking.loggers.parts:
        from flair2_exp.tracking.logger import require_loggers

        require_loggers(config.tracking.loggers)


def build_task(
    config: Config,
    spec: NetworkSpec,
    *,
    data: FlairDataModule | None = None,
    fresh: bool = True,
    source: DataSource | None = None,
) -> SegmentationTask:
    """Return the LightningModule, with released or earlier weights where the config names some.

    Args:
        config: The experiment's.
        spec: Of the network.
        data: Needed where the data's statistics decide (`needs_statistics`).
        fresh: False where a run resumes and its checkpoint replaces all weights.
        source: The data; None is FLAIR #2, whose classes and images are known.

    Raises:
        ModelError: The network cannot be built or the weights do not fit it.
    """
    from flair2_exp.models.registry import accelerate
    from flair2_exp.training.task import SegmentationTask

    task = SegmentationTask(
        network=spec.plain(),
        loss=loss_options(config, data if config.train else None),
        optimizer=plain(config.optimizer),
        scheduler=plain(config.scheduler),
        metric=plain(config.metric),
        nomenclature=source.nomenclature.plain() if source else None,
        normalisation=normalisation_of(config, data).plain(),
        inputs=inputs_of(config, spec, source).plain(),
        symmetries=config.test_time.symmetries,
        pretrained=fresh and not (config.checkpoint or config.model.weights),
    )
    if config.model.weights and fresh:
        from flair2_exp.models.weights import load_weights

        load_weights(task.model, Path(config.model.weights))
    accelerate(task.model, config.model)
    return task


def build_trainer(
    config: Config,
    folder: RunFolder,
    run: Run,
    callbacks: Sequence[Callback],
    interruption: Interruption,
    rank: Rank | None = None,
    small: str = "",
) -> Trainer:
    """Return Lightning's trainer with this experiment's callbacks and loggers.

    Args:
        config: The experiment's.
        folder: The run's.
        run: Where it is tracked.
        callbacks: Of this run, before those that every run has.
        interruption: A signal that asks this process to end.
        rank: Which process this is; None: the only one.
        small: What to propose where the training is on a processor and takes long.
    """
    from lightning import Trainer

    from flair2_exp.compat import leave_the_cluster_alone
    from flair2_exp.ranks import Rank
    from flair2_exp.tracking.logger import RunLogger, build_loggers
    from flair2_exp.training.callbacks import (
        CheckpointPaths,
        FiniteLoss,
        StepSeeds,
        standard_callbacks,
    )
    from flair2_exp.training.device import devices_of
    from flair2_exp.training.encoder import FrozenEncoder
    from flair2_exp.training.whole import WholeCheckpoints

    trainer, chosen, frozen = config.trainer, config.callbacks, config.model.freeze_encoder
    shown = chosen.progress.bars
    bars = shown == "always" or (shown == "auto" and sys.stdout.isatty())
    paths = CheckpointPaths(best=folder.best, last=folder.last, previous=folder.previous)
    devices = devices_of(trainer, rank or Rank())
    built = Trainer(
        **{**devices, "plugins": [*devices["plugins"], WholeCheckpoints()]},
        precision=trainer.precision,
        max_epochs=trainer.max_epochs,
        accumulate_grad_batches=trainer.accumulate_grad_batches,
        gradient_clip_val=trainer.gradient_clip_val or None,
        # "warn": what has no deterministic form on a GPU says so instead of stopping the run.
        deterministic="warn" if trainer.deterministic else False,
        limit_train_batches=trainer.limit_train_batches,
        limit_val_batches=trainer.limit_val_batches,
        limit_test_batches=trainer.limit_test_batches,
        log_every_n_steps=trainer.log_every_n_steps,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        enable_progress_bar=False,  # we have our own: `ShownProgress`
        default_root_dir=folder.path,
        logger=[
            RunLogger(run, folder.history, config.tracking.experiment),
            *build_loggers(config.tracking.loggers, folder.loggers, plain(config)),
        ],
        callbacks=[
            StepSeeds(config.seed),
            FiniteLoss(folder.last),
            *([FrozenEncoder(frozen)] if frozen else []),
            *callbacks,
            *standard_callbacks(chosen, paths, interruption, bars=bars, small=small),
        ],
    )
    leave_the_cluster_alone(built)
    return built
