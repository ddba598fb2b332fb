"""One experiment: from a checked config to a trained, tested and recorded model.

The typed config is taken apart here and goes no further: everything below receives plain, typed
arguments. The order is such that what can be refused is refused before anything is written, the
quickest check first.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flair2_exp import schema
from flair2_exp.errors import ConfigError, FlairError
from flair2_exp.schema import Config

if TYPE_CHECKING:
    from lightning import Callback, Trainer

    from flair2_exp.data.datamodule import FlairDataModule
    from flair2_exp.models.build import ModelSpec
    from flair2_exp.tracking.run import Run
    from flair2_exp.tracking.store import Store
    from flair2_exp.training.callbacks import BestEpoch, PanelCollector, Stopwatch
    from flair2_exp.training.task import SegmentationTask

log = logging.getLogger(__name__)

BEST, LAST = "checkpoints/best.ckpt", "checkpoints/last.ckpt"
METRICS, CONFUSION = "metrics.json", "confusion_per_patch.npz"


@dataclass
class Prepared:
    """An experiment that has passed every check and has written nothing yet."""

    config: Config
    data: FlairDataModule
    spec: ModelSpec
    task: SegmentationTask
    store: Store | None


def run(config: Config, folder: Path, overrides: Sequence[str] = ()) -> float | list[float] | None:
    """Train and test one experiment and keep everything about it.

    Args:
        config: A config that `schema.validate` accepts.
        folder: Where checkpoints and results go; an empty one is removed if the run is refused.
        overrides: Hydra's, as typed by the user; kept with the run.

    Returns:
        The objective: a number, or a list for several; None if the run does not measure it.

    Raises:
        FlairError: A mistake of the user's, before training or in the data while it runs.
    """
    with _removed_if_refused(folder):
        prepared = prepare(config)
        folder.mkdir(parents=True, exist_ok=True)
        run = open_run(prepared, folder, overrides)
    from flair2_exp.tracking.signals import sigterm_as_exception

    with sigterm_as_exception(), run:
        metrics = _train_and_test(prepared, folder, run)
        finish(prepared, folder, run, metrics)
    return objective(config.objective, metrics)


def prepare(config: Config) -> Prepared:
    """Check device, checkpoint, server, data and model, in this order, and build them.

    Raises:
        FlairError: The first thing that is wrong.
    """
    from flair2_exp.training.device import require_device

    require_device(
        config.trainer.accelerator, config.trainer.devices, config.trainer.precision
    )
    checkpoint = Path(config.checkpoint).expanduser() if config.checkpoint else None
    if checkpoint is not None:
        from flair2_exp.training.checkpoint import read_checkpoint

        content = read_checkpoint(checkpoint)
    store = _open_store(config)
    _settle_libraries(config)
    data = build_data(config)
    spec = model_spec(config, data)
    if checkpoint is not None:
        from flair2_exp.training.checkpoint import require_same_model

        require_same_model(checkpoint, content, spec.to_dict())
    return Prepared(config, data, spec, build_task(config, spec), store)


def _settle_libraries(config: Config) -> None:
    """Seeds and threads, and the libraries' chatter off."""
    import warnings

    import torch
    from lightning import seed_everything

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Few batches an epoch are no news on a small data set, nor is a processor that is asked for.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message="GPU available but not used.*")
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    seed_everything(config.seed, workers=True, verbose=False)


def _open_store(config: Config) -> Store | None:
    """The MLflow store, or None with `tracking=off` and in all processes but the first."""
    from lightning.pytorch.utilities import rank_zero_only

    if not config.tracking.enabled or rank_zero_only.rank != 0:
        return None
    from flair2_exp.tracking.store import local_uri, open_store

    if config.tracking.name == "server" and not config.tracking.uri:
        raise ConfigError(
            "tracking=server needs tracking.uri=http://HOST:PORT, or MLFLOW_TRACKING_URI."
        )
    uri = config.tracking.uri or local_uri(config.paths.mlflow)
    return open_store(uri, timeout=config.tracking.timeout)


def build_data(config: Config) -> FlairDataModule:
    """The data module, its index read and its splits found; writes the sample at first use.

    Raises:
        DataError: The data set is missing, incomplete, or gives a split no patches.
        ConfigError: The patches' size does not suit the encoder.
    """
    from flair2_exp.data.datamodule import FlairDataModule
    from flair2_exp.data.layout import locate
    from flair2_exp.data.options import (
        AugmentationOptions,
        MetadataOptions,
        SeriesOptions,
        SplitOptions,
    )

    dataset, s2, aug, split = config.dataset, config.s2_preproc, config.aug, config.split
    if dataset.sample is not None and dataset.root is not None:
        _ensure_sample(Path(dataset.root), dataset.sample)
    data = FlairDataModule(
        locate(
            dataset.root,
            aerial_train=dataset.aerial_train,
            aerial_test=dataset.aerial_test,
            labels_train=dataset.labels_train,
            labels_test=dataset.labels_test,
            satellite_train=dataset.satellite_train,
            satellite_test=dataset.satellite_test,
            centroids=dataset.centroids,
            aerial_metadata=dataset.aerial_metadata,
        ),
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
        store=Path(dataset.store) if dataset.store else None,
    )
    data.setup()
    if schema.reads_aerial(config) and data.patch_size % 32:
        raise ConfigError(
            f"patches of {data.patch_size} px: the encoder halves them five times, so their size "
            "must be a multiple of 32. For the sample: dataset.sample.patch_size=128."
        )
    return data


def _ensure_sample(root: Path, sample: schema.SampleConfig) -> None:
    from flair2_exp.data.sample import ensure_sample

    ensure_sample(
        root,
        seed=sample.seed,
        patch_size=sample.patch_size,
        domains=sample.domains,
        areas_per_domain=sample.areas_per_domain,
        patches_per_area=sample.patches_per_area,
    )


def build_task(config: Config, spec: ModelSpec) -> SegmentationTask:
    """The LightningModule, with released or earlier weights loaded where the config names some.

    Raises:
        ModelError: The network cannot be built or the weights do not fit it.
    """
    from flair2_exp.models.reference import load_weights
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
    )
    build_optimizer(task.parameters(), task.optimizer_options)  # refuses what does not fit, now
    if config.model.weights:
        load_weights(task.model, Path(config.model.weights).expanduser())
    return task


def open_run(prepared: Prepared, folder: Path, overrides: Sequence[str]) -> Run:
    """Start the MLflow run, or what stands in for it, and record what the experiment is."""
    from omegaconf import OmegaConf

    from flair2_exp.tracking.run import NullRun, TrackedRun

    config = prepared.config
    resolved = OmegaConf.to_yaml(OmegaConf.structured(config))
    (folder / "config.yaml").write_text(resolved)
    if prepared.store is None:
        return NullRun()
    from flair2_exp.tracking.provenance import collect

    origin = collect(overrides)
    experiment = prepared.store.ensure_experiment(config.tracking.experiment)
    prepared.store.close_dead_runs()
    tags = {**origin.tags(), **identifying_tags(prepared, folder), **config.tracking.tags}
    run = TrackedRun.start(
        prepared.store,
        experiment,
        name=config.tracking.run_name or f"{config.name} seed={config.seed}",
        pending=folder / "unsent",
        tags=tags,
    )
    run.log_params(OmegaConf.to_container(OmegaConf.create(resolved)))  # type: ignore[arg-type]
    run.log_text(resolved, "config/config.yaml")
    run.log_files(origin.files())
    run.log_json(prepared.data.describe(), "provenance/dataset.json")
    return run


def identifying_tags(prepared: Prepared, folder: Path) -> dict[str, object]:
    """What tables of runs group and compare by."""
    config = prepared.config
    return {
        "flair2.dataset": config.dataset.name,
        "flair2.dataset_fingerprint": prepared.data.fingerprint,
        "flair2.split": config.split.name,
        "flair2.metric": f"{config.data.classes} classes, other pixels {config.metric.other_pixels}",
        "flair2.model": config.model.name,
        "flair2.row": config.name,
        "flair2.seed": config.seed,
        "flair2.compat": config.compat,
        "flair2.folder": folder.absolute(),
    }


def _train_and_test(prepared: Prepared, folder: Path, run: Run) -> dict[str, float]:
    """Fit, then test the best checkpoint; all numbers of `metrics.json`."""
    from flair2_exp.training.callbacks import BestEpoch, PanelCollector, Stopwatch

    config, data, task = prepared.config, prepared.data, prepared.task
    stopwatch, best = Stopwatch(), BestEpoch(config.callbacks.monitor, config.callbacks.mode)
    panel = PanelCollector(
        config.callbacks.panel_patches, data.counts["test"], _true_colour(config.data.bands)
    )
    trainer = build_trainer(config, folder, run, [stopwatch, best, panel])
    chosen = Path(config.checkpoint).expanduser() if config.checkpoint else None
    if config.train:
        trainer.fit(task, datamodule=data, ckpt_path=chosen, weights_only=True)
        chosen = folder / BEST
    elif config.checkpoint or config.model.weights:
        trainer.validate(task, datamodule=data, ckpt_path=chosen, verbose=False, weights_only=True)
        best.scores = _scores(trainer, "val/")
    metrics = {**best.scores, **_scores(trainer, "train/")}
    if config.test:
        trainer.test(task, datamodule=data, ckpt_path=chosen, verbose=False, weights_only=True)
        metrics |= _scores(trainer, "test/")
        save_results(task, panel, folder)
    metrics |= stopwatch.seconds
    metrics |= {"model/parameters": float(sum(each.numel() for each in task.model.parameters()))}
    if config.train:
        metrics["train/epochs"] = float(trainer.current_epoch)
    if config.test and task.results:
        metrics["inference/seconds_per_patch"] = metrics["inference/seconds"] / len(task.results)
    return metrics


def model_spec(config: Config, data: FlairDataModule) -> ModelSpec:
    """The network's description in plain values."""
    from flair2_exp.models.build import ModelSpec

    raise AssertionError


def build_trainer(
    config: Config, folder: Path, run: Run, callbacks: Sequence[Callback]
) -> Trainer:
    """Lightning's trainer with this experiment's callbacks and loggers."""
    import sys

    from lightning import Trainer

    from flair2_exp.tracking.logger import CsvHistory, RunLogger
    from flair2_exp.training import callbacks as kept

    trainer, chosen = config.trainer, config.callbacks
    monitor = {"monitor": chosen.monitor, "mode": chosen.mode}
    bars = chosen.progress == "always" or (chosen.progress == "auto" and sys.stdout.isatty())
    stopping = [kept.early_stopping(**monitor, patience=chosen.patience)] if chosen.patience else []
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
        logger=[RunLogger(run), CsvHistory(folder / "history.csv")],
        callbacks=[
            kept.EpochSeeds(config.seed),
            *callbacks,
            *stopping,
            *kept.progress(bars=bars),
            kept.learning_rate(),
            kept.best_checkpoint(folder / "checkpoints", **monitor),
            kept.ResumePoint(folder / "checkpoints"),
        ],
    )


def _true_colour(bands: Sequence[str]) -> tuple[int, int, int] | None:
    """Positions of red, green and blue among the bands, or None where one is missing."""
    if not {"red", "green", "blue"} <= set(bands):
        return None
    return bands.index("red"), bands.index("green"), bands.index("blue")


def _scores(trainer: Trainer, prefix: str) -> dict[str, float]:
    """What Lightning last measured under a prefix."""
    return {
        name: float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith(prefix)
    }


def save_results(task: SegmentationTask, panel: PanelCollector, folder: Path) -> None:
    """Write the counts per patch and the figures of a test."""
    import numpy as np

    from flair2_exp.tracking import figures

    patches = sorted(task.results)
    np.savez_compressed(
        folder / CONFUSION,
        patch_ids=np.array(patches),
        areas=np.array([task.results[each].area for each in patches]),
        confusion=np.stack([task.results[each].confusion for each in patches]),
        classes=np.array(task.class_names),
    )
    raise AssertionError(figures)


def finish(prepared: Prepared, folder: Path, run: Run, metrics: Mapping[str, float]) -> None:
    """Write `metrics.json`, hand all results to the run, and tell the user."""
    config = prepared.config
    (folder / METRICS).write_text(json.dumps(metrics, indent=2, sort_keys=True) + "\n")
    run.log_metrics(metrics)
    for name in (METRICS, CONFUSION):
        if (folder / name).exists():
            run.log_artifact(folder / name, "results")
    for path in sorted(folder.glob("*.png")):
        run.log_artifact(path, "figures")
    run.set_tags({"flair2.best_checkpoint": (folder / BEST).absolute()})


def objective(wanted: Any, metrics: Mapping[str, float]) -> float | list[float] | None:
    """The value (or values) that the run returns to a sweeper.

    Raises:
        ConfigError: The run does not measure what is wanted; the message offers what it does.
    """
    names = wanted if isinstance(wanted, list) else [wanted]
    for name in names:
        if name not in metrics:
            known = [each for each in metrics if not each.startswith("test/")]
            raise ConfigError(f"objective={name} was never logged; {schema.nearest(name, known)}")
    values = [metrics[name] for name in names]
    return values if isinstance(wanted, list) else values[0]


@contextmanager
def _removed_if_refused(folder: Path) -> Iterator[None]:
    """Remove the folder (and parents made for it) of a run that is refused before it begins."""
    try:
        yield
    except FlairError:
        if folder.exists() and not (folder / LAST).exists():
            shutil.rmtree(folder)
        for parent in list(folder.parents)[:2]:
            if parent.exists() and not any(parent.iterdir()):
                parent.rmdir()
        raise
