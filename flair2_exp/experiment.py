"""One experiment: from a checked config to a trained, tested and recorded model.

The typed config is taken apart here and goes no further: everything below receives plain, typed
arguments. The order is such that what can be refused is refused before anything is written, the
quickest check first.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flair2_exp import identity, run_state, schema
from flair2_exp.errors import ConfigError, FlairError
from flair2_exp.run_state import RunState
from flair2_exp.schema import Config

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from lightning import Callback, Trainer

    from flair2_exp.data.datamodule import FlairDataModule
    from flair2_exp.data.layout import Folders
    from flair2_exp.models.build import ModelSpec
    from flair2_exp.tracking.run import Run
    from flair2_exp.tracking.store import Store
    from flair2_exp.training.callbacks import PanelCollector, Stopwatch
    from flair2_exp.training.task import SegmentationTask

log = logging.getLogger(__name__)

BEST, LAST = "checkpoints/best.ckpt", "checkpoints/last.ckpt"
PREVIOUS = "checkpoints/previous.ckpt"
METRICS, CONFUSION = "metrics.json", "confusion_per_patch.npz"


@dataclass
class Prepared:
    """An experiment that has passed every check and has written nothing yet."""

    config: Config
    data: FlairDataModule
    spec: ModelSpec
    task: SegmentationTask
    store: Store | None


def run(
    config: Config,
    folder: Path,
    overrides: Sequence[str] = (),
    *,
    parent_run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> float | list[float] | None:
    """Train and test one experiment and keep everything about it.

    In a folder that holds an unfinished run of the same experiment, that run goes on from its last
    checkpoint, in the same MLflow run; a finished one is not run again.

    Args:
        config: A config that `schema.validate` accepts.
        folder: Where checkpoints and results go; a new one is removed if the run is refused.
        overrides: Hydra's, as typed by the user; kept with the run.
        parent_run_id: The MLflow run of the sweep that this run belongs to.
        tags: Further tags of the MLflow run.

    Returns:
        The objective: a number, or a list for several.

    Raises:
        FlairError: A mistake of the user's, before training or in the data while it runs.
    """
    from flair2_exp.tracking.signals import sigterm_as_exception, status_of

    earlier = RunState.read(folder)
    with _removed_if_refused(folder, keep=earlier is not None):
        prepared = prepare(config)
        deciding = identity.deciding(config, prepared.data.fingerprint)
        if earlier is not None:
            earlier.require_same(deciding, folder)
            if earlier.status == run_state.FINISHED:
                log.info("finished before: %s", folder)
                return objective(config.objective, json.loads((folder / METRICS).read_text()))
        state = earlier or RunState(deciding)
        tracked = open_run(prepared, folder, overrides, state, parent_run_id, tags or {})
    state.status = run_state.TRAINED if state.training else run_state.RUNNING
    state.run_id, state.error = tracked.run_id, ""
    _write(state, folder)
    try:
        with sigterm_as_exception(), tracked:
            record(prepared, tracked)
            metrics = _train_and_test(prepared, folder, tracked, state)
            value = objective(config.objective, metrics)
            if first_process():
                finish(prepared, folder, tracked, metrics)
    except BaseException as error:
        state.status, state.error = status_of(error), f"{type(error).__name__}: {error}"
        _write(state, folder)
        raise
    state.status = run_state.FINISHED
    _write(state, folder)
    return value


def _write(state: RunState, folder: Path) -> None:
    if first_process():
        state.write(folder)


def prepare(config: Config) -> Prepared:
    """Check device, checkpoint, server, data and model, in this order, and build them.

    Raises:
        FlairError: The first thing that is wrong.
    """
    from flair2_exp.training.device import require_device

    require_device(config.trainer.accelerator, config.trainer.devices, config.trainer.precision)
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
    # Lightning 2.6 asks torch 2.15 in a way that the latter deprecates; nothing a user can mend.
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    seed_everything(config.seed, workers=True, verbose=False)


def first_process() -> bool:
    """Whether this is the process of a distributed run that writes."""
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    return int(getattr(rank_zero_only, "rank", 0)) == 0


def _open_store(config: Config) -> Store | None:
    """The MLflow store, or None with `tracking=off` and in all processes but the first."""
    if not config.tracking.enabled or not first_process():
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
    from flair2_exp.data.check import check_tree, require_sound

    satellite, size = schema.reads_satellite(config), config.s2_preproc.size
    workers = max(1, config.data.workers)
    if config.dataset.on_damaged == "stop":
        require_sound(
            folders,
            super_patch=size,
            series=satellite,
            metadata=config.metadata.enabled,
            workers=workers,
        )
        return
    found = check_tree(
        folders,
        headers_only=True,
        super_patch=size,
        series=satellite,
        metadata=config.metadata.enabled,
        workers=workers,
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


def _ensure_sample(root: Path, sample: schema.SampleConfig) -> None:
    from flair2_exp.data.sample import ensure_sample

    ensure_sample(
        root,
        seed=sample.seed,
        patch_size=sample.patch_size,
        domains=sample.domains,
        areas_per_domain=sample.areas_per_domain,
        patches_per_area=sample.patches_per_area,
        super_patch=sample.super_patch,
    )


def build_task(config: Config, spec: ModelSpec) -> SegmentationTask:
    """The LightningModule, with released or earlier weights loaded where the config names some.

    Raises:
        ModelError: The network cannot be built or the weights do not fit it.
    """
    import torch

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
        pretrained=not (config.checkpoint or config.model.weights),
    )
    build_optimizer(task.parameters(), task.optimizer_options)  # refuses what does not fit, now
    if config.model.channels_last:
        task.model.to(memory_format=torch.channels_last)
    if config.model.compile:
        task.model.compile()
    if config.model.weights:
        from flair2_exp.models.weights import load_weights

        load_weights(task.model, Path(config.model.weights).expanduser())
    return task


def open_run(
    prepared: Prepared,
    folder: Path,
    overrides: Sequence[str],
    state: RunState,
    parent_run_id: str | None,
    tags: Mapping[str, str],
) -> Run:
    """Start the MLflow run, or go on with it, or make what stands in for it.

    Raises:
        TrackingError: The store does not take it, or another process is writing this run.
    """
    from flair2_exp.tracking.run import NullRun, TrackedRun

    config, store = prepared.config, prepared.store
    if first_process():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(resolved_yaml(config))
    if store is None:
        return NullRun()
    from flair2_exp.tracking.provenance import collect

    origin = collect(overrides)
    experiment = store.ensure_experiment(config.tracking.experiment)
    store.close_dead_runs()
    named = {**origin.tags(), **identifying_tags(prepared, folder, state), **tags}
    named |= config.tracking.tags
    pending = folder / "unsent"
    if state.run_id:
        run = TrackedRun.resume(store, state.run_id, pending=pending, tags=named)
    else:
        run = TrackedRun.start(
            store,
            experiment,
            name=config.tracking.run_name or f"{config.name} seed={config.seed}",
            pending=pending,
            tags=named,
            parent_run_id=parent_run_id,
        )
    run.log_files(origin.files())
    return run


def metric_setting(config: Config) -> str:
    """How the score is computed; scores of different settings are never compared."""
    return f"{config.data.classes} classes, other pixels {config.metric.other_pixels}"


def resolved_yaml(config: Config) -> str:
    """The whole config as YAML, every interpolation resolved."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.structured(config))


def record(prepared: Prepared, run: Run) -> None:
    """Keep config and data set with the run."""
    run.log_params(dataclasses.asdict(prepared.config))
    run.log_text(resolved_yaml(prepared.config), "config/config.yaml")
    run.log_json(describe_data(prepared.config, prepared.data), "provenance/dataset.json")


def identifying_tags(prepared: Prepared, folder: Path, state: RunState) -> dict[str, object]:
    """What tables of runs group and compare by."""
    config = prepared.config
    return {
        "flair2.identity": state.identity,
        "flair2.dataset": config.dataset.name,
        "flair2.dataset_fingerprint": prepared.data.fingerprint,
        "flair2.split": config.split.name,
        "flair2.metric": metric_setting(config),
        "flair2.model": config.model.name,
        "flair2.row": config.name,
        "flair2.seed": config.seed,
        "flair2.compat": config.compat,
        "flair2.folder": folder.absolute(),
    }


def _train_and_test(
    prepared: Prepared, folder: Path, run: Run, state: RunState
) -> dict[str, float]:
    """Fit, then test the best checkpoint; all numbers of `metrics.json`."""
    from flair2_exp.training.callbacks import PanelCollector, Scores, Stopwatch

    config, data, task = prepared.config, prepared.data, prepared.task
    stopwatch, scores = Stopwatch(), Scores(config.callbacks.monitor, config.callbacks.mode)
    panel = PanelCollector(
        config.callbacks.panel_patches, data.counts["test"], _true_colour(config.data.bands)
    )
    trainer = build_trainer(config, folder, run, [stopwatch, scores, panel])
    chosen = Path(config.checkpoint).expanduser() if config.checkpoint else None
    if config.train:
        if not state.training:
            start = resume_point(folder) or chosen
            trainer.fit(task, datamodule=data, ckpt_path=start, weights_only=True)
            state.training = {
                **{n: v for n, v in scores.last.items() if n.startswith("train/")},
                **scores.best,
                **stopwatch.seconds,
            }
            state.training["train/epochs"] = float(trainer.current_epoch)
            state.status = run_state.TRAINED
            _write(state, folder)
        chosen = folder / BEST
    else:
        trainer.validate(task, datamodule=data, ckpt_path=chosen, verbose=False, weights_only=True)
        state.training = _scores(trainer, "val/")
    metrics = dict(state.training)
    if config.test:
        trainer.test(task, datamodule=data, ckpt_path=chosen, verbose=False, weights_only=True)
        metrics |= _test_metrics(task, trainer, stopwatch)
        if trainer.is_global_zero:
            save_results(task, panel, folder, _title(config, metrics["test/miou"]))
    metrics["model/parameters"] = float(sum(each.numel() for each in task.model.parameters()))
    return metrics


def _test_metrics(
    task: SegmentationTask, trainer: Trainer, stopwatch: Stopwatch
) -> dict[str, float]:
    """Scores and times of a test."""
    seconds = stopwatch.seconds["inference/seconds"]
    return {
        **_scores(trainer, "test/"),
        "test/miou_most_frequent_class": most_frequent_class_miou(task.test_confusion()),
        "inference/seconds": seconds,
        "inference/seconds_per_patch": seconds / max(1, len(task.results)),
    }


def _title(config: Config, score: float) -> str:
    """The line above a figure; scores on the sample are always called that."""
    name = "synthetic sample" if config.dataset.name == "sample" else config.dataset.name
    return f"{config.name}, {name}: test mIoU {score:.4f}"


def resume_point(folder: Path) -> Path | None:
    """The newest readable checkpoint of an interrupted run, or None where there is none yet."""
    from flair2_exp.errors import CheckpointError
    from flair2_exp.training.checkpoint import read_checkpoint

    for name in (LAST, PREVIOUS):
        path = folder / name
        if path.exists():
            try:
                read_checkpoint(path)
            except CheckpointError as error:
                log.warning("%s", error)
            else:
                log.info("going on from %s", path)
                return path
    return None


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
            collapsed=fusion.collapsed,
            dropout=fusion.dropout,
            dropout_rate=fusion.dropout_rate,
            mlp_dropout=fusion.mlp_dropout,
        ),
    )


def build_trainer(config: Config, folder: Path, run: Run, callbacks: Sequence[Callback]) -> Trainer:
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
            kept.EpochSeeds(config.seed),
            *callbacks,
            *stopping,
            *kept.progress(bars=bars),
            kept.best_checkpoint(kept_in, monitor=chosen.monitor, mode=chosen.mode),
            kept.ResumePoint(kept_in),
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


def save_results(task: SegmentationTask, panel: PanelCollector, folder: Path, title: str) -> None:
    """Write the counts per patch and the figures of a test."""
    import numpy as np

    from flair2_exp.nomenclature import classes
    from flair2_exp.tracking import figures

    patches = sorted(task.results)
    np.savez_compressed(
        folder / CONFUSION,
        patch_ids=np.array(patches),
        areas=np.array([task.results[each].area for each in patches]),
        confusion=np.stack([task.results[each].confusion for each in patches]),
        classes=np.array(task.class_names),
    )
    shown = classes(len(task.class_names))
    drawn = figures.confusion(task.test_confusion(), shown, title=title)
    figures.save(drawn, folder / "confusion.png")
    if panel.rows:
        drawn = figures.panel(
            np.stack([row.image for row in panel.rows]),
            np.stack([row.truth for row in panel.rows]),
            np.stack([row.prediction for row in panel.rows]),
            [row.patch for row in panel.rows],
            shown,
            title=title,
        )
        figures.save(drawn, folder / "panel.png")


def finish(prepared: Prepared, folder: Path, run: Run, metrics: Mapping[str, float]) -> None:
    """Write `metrics.json`, hand all results to the run, and tell the user."""
    from flair2_exp.tracking.summary import summary

    config = prepared.config
    (folder / METRICS).write_text(json.dumps(metrics, indent=2, sort_keys=True) + "\n")
    # Losses and scores are in the run by epoch; these are the run's own.
    by_epoch = ("train/l", "val/", "test/loss", "test/miou", "test/iou", "test/accuracy")
    own = {n: v for n, v in metrics.items() if not n.startswith(by_epoch)}
    own["test/miou_most_frequent_class"] = metrics.get("test/miou_most_frequent_class", 0.0)
    run.log_metrics(own)
    run.log_metrics({f"best/{n}": v for n, v in metrics.items() if n.startswith("val/")})
    for name in (METRICS, CONFUSION, "history.csv"):
        if (folder / name).exists():
            run.log_artifact(folder / name, "results")
    for path in sorted(folder.glob("*.png")):
        run.log_artifact(path)  # at the root, where MLflow's comparison of runs looks for images
    run.set_tags({"flair2.best_checkpoint": (folder / BEST).absolute()})
    run.describe(
        summary(
            facts=facts(config),
            scores={n: v for n, v in metrics.items() if n in SUMMARY},
            folder=str(folder.absolute()),
            note=SYNTHETIC if config.dataset.name == "sample" else "",
        )
    )
    log.info("%s", result_table(config, folder, metrics, run.run_id))


SUMMARY = ("test/miou", "val/miou", "inference/seconds_per_patch", "train/seconds")
SYNTHETIC = "Scores on the synthetic sample: they say nothing about real land cover."


def facts(config: Config) -> dict[str, object]:
    """What an experiment is, in a few words each."""
    satellite = schema.reads_satellite(config)
    return {
        "model": config.model.name,
        "encoder": config.model.encoder if schema.reads_aerial(config) else "-",
        "dataset": f"{config.dataset.name}, split {config.split.name}",
        "satellite series": config.s2_preproc.name if satellite else "-",
        "augmentation": config.aug.name,
        "metadata": config.metadata.name,
        "compat": config.compat,
        "seed": config.seed,
    }


def result_table(config: Config, folder: Path, metrics: Mapping[str, float], run_id: str) -> str:
    """The scores and where to look, for the terminal."""
    lines = [""]
    if config.dataset.name == "sample":
        lines += [SYNTHETIC]
    prefix = "test/iou/"
    per_class = {n.removeprefix(prefix): v for n, v in metrics.items() if n.startswith(prefix)}
    lines += [f"  {name:<24}{value:7.4f}" for name, value in per_class.items()]
    shown = {
        "test mIoU": "test/miou",
        "most frequent class": "test/miou_most_frequent_class",
        "val mIoU": "val/miou",
        "training, s": "train/seconds",
        "inference, s a patch": "inference/seconds_per_patch",
    }
    for label, name in shown.items():
        if name in metrics:
            lines += [f"{label:<26}{metrics[name]:7.4f}"]
    lines += ["", f"results   {folder}"]
    if run_id:
        lines += [f"MLflow    run {run_id} in experiment {config.tracking.experiment}: make ui"]
    return "\n".join(lines)


def most_frequent_class_miou(confusion: npt.NDArray[np.int64]) -> float:
    """The score of predicting the most frequent scored class of the truth everywhere.

    Args:
        confusion: (C, C) counts, rows truth.
    """
    import numpy as np

    from flair2_exp.nomenclature import SCORED
    from flair2_exp.training.metrics import miou

    truth = confusion.sum(axis=1)
    constant = np.zeros_like(confusion)
    constant[:, int(truth[:SCORED].argmax())] = truth
    return float(miou(constant))


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
def _removed_if_refused(folder: Path, *, keep: bool) -> Iterator[None]:
    """Remove the folder, and parents made for it, of a run that is refused before it begins."""
    try:
        yield
    except FlairError:
        if not keep and first_process():
            shutil.rmtree(folder, ignore_errors=True)
            for parent in list(folder.parents)[:2]:
                if parent.is_dir() and not any(parent.iterdir()):
                    parent.rmdir()
        raise
