"""One experiment: from a checked config to a trained, tested and recorded model.

The order is such that what can be refused is refused before anything is written, the quickest check
first.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flair2_exp import locking
from flair2_exp.config import identity
from flair2_exp.config.schema import Config
from flair2_exp.errors import CheckpointError, ConfigError, FlairError, nearest
from flair2_exp.files import write_text
from flair2_exp.locking import locked
from flair2_exp.run import record as run_state
from flair2_exp.run.record import RunState
from flair2_exp.signals import KILLED, Interruption, interrupt_of, signals_as_exceptions, status_of

if TYPE_CHECKING:
    from lightning import Trainer

    from flair2_exp.data.datamodule import FlairDataModule
    from flair2_exp.models.build import ModelSpec
    from flair2_exp.tracking.run import Run
    from flair2_exp.tracking.store import Store
    from flair2_exp.training.callbacks import Stopwatch
    from flair2_exp.training.pruning import Reporter
    from flair2_exp.training.task import SegmentationTask

log = logging.getLogger(__name__)

BEST: Final = "checkpoints/best.ckpt"
LAST: Final = "checkpoints/last.ckpt"
PREVIOUS: Final = "checkpoints/previous.ckpt"


@dataclass
class Prepared:
    """An experiment that has passed every check and has written nothing yet."""

    config: Config
    data: FlairDataModule
    spec: ModelSpec
    task: SegmentationTask
    store: Store | None
    start: Path | None
    """The checkpoint that training goes on from."""


def run(
    config: Config,
    folder: Path,
    overrides: Sequence[str] = (),
    *,
    parent_run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
    reporter: Reporter | None = None,
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
        reporter: The trial of a search: learns the objective of each epoch, and may end the
            training early. Such a run is finished, but keeps no checkpoints and is not tested.

    Returns:
        The objective: a number, or a list for several.

    Raises:
        FlairError: A mistake of the user's, before training or in the data while it runs.
    """
    alone = locked(folder, "choose another folder with hydra.run.dir=FOLDER")
    with signals_as_exceptions() as asked, alone if first_process() else nullcontext(False) as held:
        place = Place(folder, parent_run_id, tags or {}, held)
        return _run(config, place, overrides, reporter, asked)


@dataclass(frozen=True)
class Place:
    """Where a run's results go.

    Attributes:
        folder: On the disk.
        parent_run_id: The MLflow run that its own stands under.
        tags: Further tags of its MLflow run.
        held: Whether no other process can be at work in the folder.
    """

    folder: Path
    parent_run_id: str | None
    tags: Mapping[str, str]
    held: bool


def _run(
    config: Config,
    place: Place,
    overrides: Sequence[str],
    reporter: Reporter | None,
    interruption: Interruption,
) -> float | list[float] | None:
    """`run`, in a folder that this process holds."""
    from flair2_exp.run.results import finish, read_metrics

    folder = place.folder
    earlier = read_state(folder)
    with _removed_if_refused(folder, Path(config.paths.root), keep=earlier is not None):
        prepared = prepare(config, folder, earlier)
        deciding = identity.deciding(config, prepared.data.fingerprint)
        if earlier is not None:
            earlier.require_same(deciding, folder)
            metrics = read_metrics(folder)
            if is_done(earlier, metrics, config):
                log.info("finished before: %s", folder)
                _tell_pruned(earlier, reporter)
                return objective(config.objective, metrics)
        state = earlier or RunState(deciding)
        if state.training and config.train and config.test and not state.pruned:
            _require_best(folder)
        tracked = open_run(prepared, place, overrides, state)
    _tell_pruned(state, reporter)
    try:
        with tracked, _told_as(interruption):
            record(prepared, tracked)
            metrics = _train_and_test(prepared, folder, tracked, state, reporter, interruption)
            value = objective(config.objective, metrics)
            if first_process():
                if state.pruned:
                    shutil.rmtree((folder / BEST).parent, ignore_errors=True)
                    tracked.set_tags({"flair2.pruned": True})
                finish(config, folder, tracked, metrics, folder / BEST)
    except BaseException as error:
        if getattr(error, "disowned", False):  # another process goes on in this folder
            raise
        state.status, state.error = status_of(error), f"{type(error).__name__}: {error}"
        _write(state, folder)
        raise
    state.status = run_state.FINISHED
    _write(state, folder)
    return value


def read_state(folder: Path) -> RunState | None:
    """What a folder says about the run in it; None where it holds none.

    Raises:
        ConfigError: It holds checkpoints, and not (or not readably) whose they are.
    """
    state = RunState.read(folder)
    if state is None and any((folder / name).exists() for name in (BEST, LAST, PREVIOUS)):
        raise ConfigError(
            f"{folder} holds checkpoints, but no readable {run_state.FILE} that says of which "
            "experiment.\nChoose another folder, or remove that one."
        )
    return state


def is_done(state: RunState, metrics: Mapping[str, float], config: Config) -> bool:
    """Whether nothing is left to do: a run may be trained now and tested later."""
    if state.status != run_state.FINISHED:
        return False
    return bool(metrics) and (state.pruned or not config.test or "test/miou" in metrics)


@contextmanager
def _told_as(interruption: Interruption) -> Iterator[None]:
    """Raise what a signal asked for, whatever became of that on its way.

    Lightning makes a `SystemExit` of Ctrl-C; a data loader whose worker the same signal has ended
    raises an error of its own.
    """
    try:
        yield
    except BaseException as error:
        asked = interruption.asked or interrupt_of(error)
        if asked is error:
            raise
        raise asked from error


def _tell_pruned(state: RunState, reporter: Reporter | None) -> None:
    """Let a trial know that its training had been stopped early by an earlier process."""
    if state.pruned and reporter is not None and first_process():
        reporter.prune(int(state.training["train/epochs"]))


def _write(state: RunState, folder: Path) -> None:
    if first_process():
        state.write(folder)


def prepare(config: Config, folder: Path, earlier: RunState | None) -> Prepared:
    """Check server, device, checkpoint, data and model, in this order, and build them.

    Args:
        config: The experiment's.
        folder: The run's.
        earlier: What the folder says of an earlier process's part of this run.

    Raises:
        FlairError: The first thing that is wrong.
    """
    # A server is asked before torch is imported; a local store is made when all else is well.
    store = _open_store(config) if config.tracking.uri else None
    from flair2_exp.run.assembly import build_data, build_task, model_spec
    from flair2_exp.training.device import require_device, require_strategy

    require_device(config.trainer.accelerator, config.trainer.devices, config.trainer.precision)
    require_strategy(config.trainer.strategy)
    checkpoint = Path(config.checkpoint).expanduser() if config.checkpoint else None
    if checkpoint is not None:
        from flair2_exp.training.checkpoint import read_checkpoint

        content = read_checkpoint(checkpoint)
    _settle_libraries(config)
    data = build_data(config)
    spec = model_spec(config, data)
    if checkpoint is not None:
        from flair2_exp.training.checkpoint import require_same_model

        require_same_model(checkpoint, content, spec.to_dict())
    start = resume_point(folder) if earlier is not None and not earlier.training else None
    # Weights that a checkpoint will replace are not read, let alone downloaded.
    goes_on = start is not None or (earlier is not None and bool(earlier.training))
    task = build_task(config, spec, fresh=not goes_on)
    if checkpoint is not None and config.train and not goes_on:
        from flair2_exp.training.checkpoint import require_training_state

        epochs = config.trainer.max_epochs
        require_training_state(checkpoint, content, task.hparams, epochs=epochs)
    return Prepared(config, data, spec, task, store or _open_store(config), start)


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
    # A run that goes on finds its own checkpoints.
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty.*")
    # A run from another's checkpoint keeps its own best one.
    warnings.filterwarnings("ignore", message="The dirpath has changed.*")
    # Lightning 2.6 asks torch 2.15 in a way that the latter deprecates; nothing a user can mend.
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    seed_everything(config.seed, workers=True, verbose=False)


def first_process() -> bool:
    """Whether this is the process of a distributed run that writes.

    By the launchers' variables, as Lightning finds its rank, but without importing it: a server
    that does not answer is told before torch is loaded.
    """
    if os.environ.get("NODE_RANK", "0") != "0":
        return False
    ranks = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
    known = [os.environ[name] for name in ranks if name in os.environ]
    return not known or known[0] == "0"


def _open_store(config: Config) -> Store | None:
    """The MLflow store, or None in all processes but the first."""
    from flair2_exp.run.assembly import open_store

    return open_store(config) if first_process() else None


def open_run(prepared: Prepared, place: Place, overrides: Sequence[str], state: RunState) -> Run:
    """Start the MLflow run, or go on with it, or make what stands in for it; note it in the folder.

    Raises:
        TrackingError: The store does not take it, or another process is writing this run.
    """
    from flair2_exp.tracking.provenance import collect
    from flair2_exp.tracking.run import NullRun

    config, origin = prepared.config, None
    run: Run = NullRun()
    if prepared.store is not None:
        origin = collect(overrides)
        named = {**origin.tags(), **place.tags, **config.tracking.tags}
        run = _tracked_run(prepared, prepared.store, place, state, named)
    state.status = run_state.TRAINED if state.training else run_state.RUNNING
    state.run_id, state.error = run.run_id, ""
    if first_process():
        write_text(place.folder / "config.yaml", resolved_yaml(config))
    _write(state, place.folder)
    if origin is not None:
        run.log_files(origin.files())
    return run


def _tracked_run(
    prepared: Prepared,
    store: Store,
    place: Place,
    state: RunState,
    tags: Mapping[str, object],
) -> Run:
    from flair2_exp.tracking.run import TrackedRun

    config = prepared.config
    experiment = store.ensure_experiment(config.tracking.experiment)
    store.close_dead_runs()
    own = identifying_tags(prepared, place.folder, state)
    # A process that was killed between making the run and noting it in the folder left one behind.
    left = {name: str(own[name]) for name in ("flair2.folder", "flair2.identity")}
    known = state.run_id or store.find_run(experiment, left, status=KILLED)
    pending, named = place.folder / "unsent", {**own, **tags}
    if known:
        return TrackedRun.resume(store, known, pending=pending, tags=named, take_over=place.held)
    return TrackedRun.start(
        store,
        experiment,
        name=config.tracking.run_name or f"{config.name} seed={config.seed}",
        pending=pending,
        tags=named,
        parent_run_id=place.parent_run_id,
    )


def metric_setting(config: Config) -> str:
    """How the score is computed; scores of different settings are never compared."""
    return f"{config.data.classes} classes, other pixels {config.metric.other_pixels}"


def resolved_yaml(config: Config) -> str:
    """The whole config as YAML, every interpolation resolved."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.structured(config))


def record(prepared: Prepared, run: Run) -> None:
    """Keep config and data set with the run."""
    from flair2_exp.run.assembly import describe_data

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
    prepared: Prepared,
    folder: Path,
    run: Run,
    state: RunState,
    reporter: Reporter | None,
    interruption: Interruption,
) -> dict[str, float]:
    """Fit, then test the best checkpoint; all numbers of `metrics.json`."""
    from flair2_exp.models.build import count_parameters
    from flair2_exp.run.assembly import build_trainer
    from flair2_exp.run.results import save_results
    from flair2_exp.training.callbacks import PanelCollector, Scores, Stopwatch, metrics_under
    from flair2_exp.training.pruning import Pruning

    config, data, task = prepared.config, prepared.data, prepared.task
    stopwatch, scores = Stopwatch(), Scores(config.callbacks.monitor, config.callbacks.mode)
    panel = PanelCollector(
        config.callbacks.panel_patches, data.counts["test"], _true_colour(config.data.bands)
    )
    # Searches that prune have one objective; what only the end measures cannot be reported.
    reported = isinstance(config.objective, str) and config.objective.startswith("val/")
    pruning = Pruning(reporter if first_process() else None, config.objective)
    pruners = [pruning] if reporter is not None and reported else []
    trainer = build_trainer(config, folder, run, [stopwatch, scores, panel, *pruners], interruption)
    chosen = Path(config.checkpoint).expanduser() if config.checkpoint else None
    if config.train:
        if not state.training:
            start = prepared.start or chosen
            trainer.fit(task, datamodule=data, ckpt_path=start, weights_only=True)
            state.training = {
                **{n: v for n, v in scores.last.items() if n.startswith("train/")},
                **scores.best,
                **stopwatch.seconds,
            }
            state.training["train/epochs"] = float(trainer.current_epoch)
            state.pruned = pruning.stopped_epoch is not None
            state.status = run_state.TRAINED
            _write(state, folder)
        chosen = folder / BEST
    else:
        trainer.validate(task, datamodule=data, ckpt_path=chosen, verbose=False, weights_only=True)
        state.training = metrics_under(trainer, "val/")
    metrics = dict(state.training)
    if state.pruned:
        return metrics
    if config.test:
        trainer.test(task, datamodule=data, ckpt_path=chosen, verbose=False, weights_only=True)
        metrics |= _test_metrics(task, trainer, stopwatch)
        if trainer.is_global_zero:
            save_results(task, panel, folder, _title(config, metrics["test/miou"]))
    elif any(name.startswith("inference/") for name in _names(config.objective)):
        trainer.loggers = []  # its scores are known: those of the best epoch
        trainer.validate(task, datamodule=data, ckpt_path=chosen, verbose=False, weights_only=True)
        metrics |= stopwatch.of_validation()
    metrics["model/parameters"] = float(count_parameters(task.model))
    return metrics


def _test_metrics(
    task: SegmentationTask, trainer: Trainer, stopwatch: Stopwatch
) -> dict[str, float]:
    """Scores and times of a test."""
    from flair2_exp.run.results import most_frequent_class_miou
    from flair2_exp.training.callbacks import metrics_under

    seconds = stopwatch.seconds["inference/seconds"]
    return {
        **metrics_under(trainer, "test/"),
        "test/patches": float(len(task.results)),  # those scored: damaged ones may be left out
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


def _require_best(folder: Path) -> None:
    """Refuse to test a trained run whose best checkpoint is gone or torn; no other has its scores.

    Raises:
        CheckpointError: It cannot be read.
    """
    from flair2_exp.training.checkpoint import read_checkpoint

    try:
        read_checkpoint(folder / BEST)
    except CheckpointError as error:
        raise CheckpointError(
            f"{str(error).splitlines()[0]}\nThis run is trained, and that is what its test needs: "
            f"put it back, or remove {folder} to train anew."
        ) from error


def _true_colour(bands: Sequence[str]) -> tuple[int, int, int] | None:
    """Positions of red, green and blue among the bands, or None where one is missing."""
    if not {"red", "green", "blue"} <= set(bands):
        return None
    return bands.index("red"), bands.index("green"), bands.index("blue")


def _names(objective: Any) -> list[str]:
    return list(objective) if isinstance(objective, list) else [objective]


def objective(wanted: Any, metrics: Mapping[str, float]) -> float | list[float] | None:
    """The value (or values) that the run returns to a sweeper.

    Raises:
        ConfigError: The run does not measure what is wanted; the message offers what it does.
    """
    names = _names(wanted)
    for name in names:
        if name not in metrics:
            known = [each for each in metrics if not each.startswith("test/")]
            from flair2_exp.training.pruning import UnknownObjectiveError

            raise UnknownObjectiveError(
                f"objective={name} was never logged: it is not among the values that the run "
                f"measured; {nearest(name, known)}"
            )
    values = [metrics[name] for name in names]
    return values if isinstance(wanted, list) else values[0]


@contextmanager
def _removed_if_refused(folder: Path, root: Path, *, keep: bool) -> Iterator[None]:
    """Remove what was written for a run that is refused before it begins, and nothing else.

    Args:
        folder: The run's, which may have been there before, with files of the user's in it.
        root: Of all results: parents below it are ours, and go where they are left empty.
        keep: The folder holds an earlier part of the run.
    """
    try:
        yield
    except FlairError:
        if not keep and first_process():
            shutil.rmtree(folder / ".hydra", ignore_errors=True)
            for name in (locking.FILE, "flair2_exp.log"):  # the latter by hydra.job.name
                (folder / name).unlink(missing_ok=True)
            _remove_empty(folder.absolute(), root)
        raise


def _remove_empty(folder: Path, root: Path) -> None:
    """Remove a folder and its parents below a root, from the first that holds something up not."""
    here = Path.cwd()
    for each in (folder, *(parent for parent in folder.parents if root in parent.parents)):
        if each == here or not each.is_dir() or any(each.iterdir()):
            return
        each.rmdir()
