"""From a checked config to the parts of an experiment: data, network, task, trainer.

This is where the typed config is taken apart; everything below receives plain, typed arguments.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flair2_exp.config import schema
from flair2_exp.config.schema import Config
from flair2_exp.errors import ConfigError

if TYPE_CHECKING:
    from lightning import Callback, Trainer

    from flair2_exp.data.datamodule import FlairDataModule
    from flair2_exp.data.layout import Folders
    from flair2_exp.models.build import ModelSpec
    from flair2_exp.signals import Interruption
    from flair2_exp.tracking.run import Run
    from flair2_exp.tracking.store import Store
    from flair2_exp.training.task import SegmentationTask

log = logging.getLogger(__name__)


def open_store(config: Config) -> Store | None:
    """The MLflow store of a run, a sweep or a search; None with `tracking=off`.

    Raises:
        TrackingError: It does not answer or cannot be written.
    """
    if not config.tracking.enabled:
        return None
    from flair2_exp.tracking import store

    uri = config.tracking.uri or store.local_uri(config.paths.mlflow)
    return store.open_store(uri, timeout=config.tracking.timeout)


def require_files(config: Config) -> None:
    """Refuse a config that names data or weights that are not there; nothing is opened.

    Raises:
        DataError: The data set is missing or incomplete.
        ConfigError: Another file is missing.
    """
    if config.dataset.sample is None:  # which is written at first use
        _folders(config)
    first_weights = config.model.encoder_weights if schema.reads_aerial(config) else None
    named = {
        "dataset.store": config.dataset.store,
        "split.file": config.split.file if config.split.name == "file" else None,
        "checkpoint": config.checkpoint,
        "model.weights": config.model.weights,
        "model.encoder_weights": None if first_weights == "imagenet" else first_weights,
    }
    for option, path in named.items():
        if path is not None and not Path(path).expanduser().exists():
            raise ConfigError(f"{option}={path}: there is no such file.")


def _folders(config: Config) -> Folders:
    from flair2_exp.data.layout import locate

    dataset = config.dataset
    return locate(
        dataset.root,
        aerial_train=dataset.aerial_train,
        aerial_test=dataset.aerial_test,
        labels_train=dataset.labels_train,
        labels_test=dataset.labels_test,
        satellite_train=dataset.satellite_train,
        satellite_test=dataset.satellite_test,
        centroids=dataset.centroids,
        aerial_metadata=dataset.aerial_metadata,
    )


def build_data(config: Config) -> FlairDataModule:
    """The data module, its index read and its splits found; writes the sample at first use.

    Raises:
        DataError: The data set is missing, incomplete, or gives a split no patches.
        ConfigError: The patches' size does not suit the encoder.
    """
    from flair2_exp.data.datamodule import FlairDataModule
    from flair2_exp.data.options import (
        AugmentationOptions,
        MetadataOptions,
        SeriesOptions,
        SplitOptions,
    )
    from flair2_exp.data.sample.tree import SampleOptions, ensure_sample

    dataset, s2, aug, split = config.dataset, config.s2_preproc, config.aug, config.split
    if dataset.sample is not None and dataset.root is not None:
        ensure_sample(dataset.root, SampleOptions(**dataclasses.asdict(dataset.sample)))
    data = FlairDataModule(
        _folders(config),
        split=SplitOptions(split.name, split.file, split.train_fraction, split.seed),  # type: ignore[arg-type]
        aerial=schema.reads_aerial(config),
        satellite=schema.reads_satellite(config),
        metadata=MetadataOptions(config.metadata.month) if config.metadata.enabled else None,  # type: ignore[arg-type]
        bands=tuple(config.data.bands),
        classes=config.data.classes,
        series=SeriesOptions(
            filter=s2.cloud_filter,
            monthly=s2.monthly,
            size=s2.size,
            threshold=s2.threshold,
            max_cover=s2.max_cover,
            cover=s2.cover,  # type: ignore[arg-type]
            on_empty=s2.on_empty,  # type: ignore[arg-type]
            scale=s2.scale,  # type: ignore[arg-type]
            days=s2.days,  # type: ignore[arg-type]
        ),
        augmentation=AugmentationOptions(
            geometry=aug.geometry,  # type: ignore[arg-type]
            probability=aug.probability,
            satellite=aug.satellite,
            brightness=aug.brightness,
            contrast=aug.contrast,
            gamma=aug.gamma,
            noise=aug.noise,
            zoom=aug.zoom,
            drop_dates=aug.drop_dates,
        ),
        batch_size=config.data.batch_size,
        eval_batch_size=config.data.eval_batch_size,
        workers=config.data.workers,
        seed=config.seed,
        on_damaged=dataset.on_damaged,  # type: ignore[arg-type]
        store=Path(dataset.store).expanduser() if dataset.store else None,
        parts=parts_read(config),
    )
    if dataset.check == "headers" and dataset.store is None:
        _check_headers(config, data.folders)
    data.setup()
    if schema.reads_aerial(config) and data.patch_size % 32:
        raise ConfigError(
            f"patches of {data.patch_size} px: the encoder halves them five times, so their size "
            "must be a multiple of 32. For the sample: dataset.sample.patch_size=128."
        )
    return data


def _check_headers(config: Config, folders: Folders) -> None:
    """Look at every file's header before a run of days trips over one of them.

    Raises:
        DataError: Files are damaged or missing, and `dataset.on_damaged` is `stop`.
    """
    from flair2_exp.data.check.tree import check_headers, require_sound

    stop = config.dataset.on_damaged == "stop"
    found = (require_sound if stop else check_headers)(
        folders,
        super_patch=config.s2_preproc.size,
        series=schema.reads_satellite(config),
        metadata=config.metadata.enabled,
        workers=max(1, config.data.workers),
    )
    for finding in [each for each in found if each.severity == "error"][:5]:
        log.warning("%s: %s", finding.path, finding.message)


def parts_read(config: Config) -> tuple[str, ...]:
    """The parts of the split that the experiment reads, none of which may be empty."""
    train = ("train",) if config.train else ()
    return (*train, "validation", *(("test",) if config.test else ()))


def describe_data(config: Config, data: FlairDataModule) -> dict[str, Any]:
    """What the data set and its split were: kept with the run."""
    areas = data.index.area_names[data.index.area]
    parts = data.split.parts()
    return {
        "name": config.dataset.name,
        "root": config.dataset.root,
        "fingerprint": data.fingerprint,
        "patch_size": data.patch_size,
        "patches": data.counts,
        "domains": {
            name: sorted({area.split("/")[0] for area in areas[positions].tolist()})
            for name, positions in parts.items()
        },
    }


def model_spec(config: Config, data: FlairDataModule) -> ModelSpec:
    """The network's description in plain values."""
    from flair2_exp.models.build import ModelSpec
    from flair2_exp.models.fusion import FusionOptions
    from flair2_exp.models.utae import UTAEOptions

    model, utae, fusion = config.model, config.utae, config.fusion
    return ModelSpec(
        name=model.name,
        encoder=model.encoder,
        encoder_weights=model.encoder_weights,
        in_channels=len(config.data.bands),
        classes=config.data.classes,
        decoder_channels=tuple(model.decoder_channels),
        metadata=config.metadata.enabled,
        metadata_fusion=config.metadata.fusion,
        patch_size=data.patch_size,
        series_size=config.s2_preproc.size,
        utae=UTAEOptions(
            encoder_widths=tuple(utae.encoder_widths),
            decoder_widths=tuple(utae.decoder_widths),
            heads=utae.heads,
            d_model=utae.d_model,
            d_k=utae.d_k,
            aggregation=utae.aggregation,
            head_widths=tuple(utae.head_widths),
            normalise_padding=utae.normalise_padding,
            checkpointing=utae.checkpointing,
        ),
        fusion=FusionOptions(
            terms=fusion.terms,
            collapsed=fusion.collapsed,
            dropout=fusion.dropout,
            dropout_rate=fusion.dropout_rate,
            mlp_dropout=fusion.mlp_dropout,
        ),
    )


def build_task(config: Config, spec: ModelSpec, *, fresh: bool = True) -> SegmentationTask:
    """The LightningModule, with released or earlier weights loaded where the config names some.

    Args:
        config: The experiment's.
        spec: Of the network.
        fresh: False where a run goes on and its checkpoint replaces all weights.

    Raises:
        ModelError: The network cannot be built or the weights do not fit it.
    """
    from flair2_exp.models.build import accelerate
    from flair2_exp.training.optimization import OptimizerOptions, SchedulerOptions, build_optimizer
    from flair2_exp.training.task import LossOptions, SegmentationTask, plain

    loss, optimizer, scheduler = config.loss, config.optimizer, config.scheduler
    task = SegmentationTask(
        model=spec.to_dict(),
        loss=plain(
            LossOptions(
                aerial=loss.aerial,
                satellite=loss.satellite,
                class_weights=loss.class_weights,
                satellite_ignores_plowed_land=loss.satellite_class_weights == "reference",
                label_smoothing=loss.label_smoothing,
                gamma=loss.gamma if loss.name == "focal" else 0.0,
                dice=loss.name == "dice_cross_entropy",
            )
        ),
        optimizer=plain(
            OptimizerOptions(
                optimizer._target_, optimizer.lr, optimizer.weight_decay, optimizer.options
            )
        ),
        scheduler=plain(
            SchedulerOptions(
                scheduler.name,
                scheduler.warmup_epochs,
                scheduler.final_factor,
                scheduler.factor,
                scheduler.patience,
            )
        ),
        keep_other=config.metric.other_pixels == "keep",
        pretrained=fresh and not (config.checkpoint or config.model.weights),
    )
    build_optimizer(task.parameters(), task.optimizer_options)  # refuses what does not fit, now
    if config.model.weights and fresh:
        from flair2_exp.models.weights import load_weights

        load_weights(task.model, Path(config.model.weights).expanduser())
    accelerate(task.model, channels_last=config.model.channels_last, compiled=config.model.compile)
    return task


def build_trainer(
    config: Config,
    folder: Path,
    run: Run,
    callbacks: Sequence[Callback],
    interruption: Interruption,
) -> Trainer:
    """Lightning's trainer with this experiment's callbacks and loggers."""
    import sys

    from lightning import Trainer

    from flair2_exp.tracking.logger import RunLogger
    from flair2_exp.training import callbacks as kept

    trainer, chosen = config.trainer, config.callbacks
    bars = chosen.progress == "always" or (chosen.progress == "auto" and sys.stdout.isatty())
    stopping = (
        [kept.Patience(chosen.monitor, patience=chosen.patience, mode=chosen.mode)]
        if chosen.patience
        else []
    )
    kept_in = folder / "checkpoints"
    return Trainer(
        accelerator=trainer.accelerator,
        devices=trainer.devices,
        num_nodes=trainer.num_nodes,
        strategy=trainer.strategy,
        precision=trainer.precision,  # type: ignore[arg-type]
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
        enable_progress_bar=bars,
        default_root_dir=folder,
        logger=RunLogger(run, folder, config.tracking.experiment),
        callbacks=[
            kept.StepSeeds(config.seed),
            *callbacks,
            *stopping,
            *kept.progress(bars=bars),
            kept.best_checkpoint(kept_in, monitor=chosen.monitor, mode=chosen.mode),
            kept.ResumePoint(kept_in, minutes=chosen.save_minutes, interruption=interruption),
        ],
    )
