"""One experiment: from a checked config to a trained, tested and recorded network.

The order is such that what can be refused is refused before anything is written, the quickest check
first.
"""

from __future__ import annotations

import logging
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flair2_exp.config.experiment import Config
from flair2_exp.config.fields import plain
from flair2_exp.config.identity import outline, own_code
from flair2_exp.errors import (
    CheckpointError,
    ConfigError,
    FlairError,
    TrackingError,
    nearest,
)
from flair2_exp.files import write_text
from flair2_exp.lifecycle.folder import Footprint, RunFolder
from flair2_exp.lifecycle.peers import Peers
from flair2_exp.lifecycle.record import (
    CONFIG,
    DECIDING,
    FINISHED,
    KILLED,
    PREEMPTED,
    RUNNING,
    TRAINED,
    RunRecord,
)
from flair2_exp.locking import locked
from flair2_exp.machine import cores
from flair2_exp.ranks import Rank, rank_of
from flair2_exp.shortage import in_words, reserved
from flair2_exp.signals import (
    Interruption,
    held_back,
    interrupt_of,
    signals_as_exceptions,
    status_of,
)
from flair2_exp.tracking.scrub import scrub, scrub_tree
from flair2_exp.tracking.tags import Tag

if TYPE_CHECKING:
    import socket

    from lightning import Trainer

    from flair2_exp.data.datamodule import FlairDataModule
    from flair2_exp.data.normalisation import Normalisation
    from flair2_exp.models.registry import NetworkSpec
    from flair2_exp.tracking.run import Run
    from flair2_exp.tracking.store import Store
    from flair2_exp.training.callbacks import Scores, Stopwatch
    from flair2_exp.training.panel import PanelCollector
    from flair2_exp.training.pruning import Pruning, Reporter
    from flair2_exp.training.task import SegmentationTask

log = logging.getLogger(__name__)

_SHORT: Final = 6
"""Digits of an identity in a run's name: enough to tell some hundred runs apart."""
_SHORT_DATA: Final = 12
"""Digits of a data set's fingerprint, as messages show it."""
_OF_DATA: Final = (Tag.FINGERPRINT, Tag.TEST_FINGERPRINT, Tag.SPLIT)
"""What MLflow's page of a data set shows of it."""


@dataclass(frozen=True)
class Membership:
    """What a run belongs to: a sweep or a search.

    Attributes:
        parent_run_id: The MLflow run that its own stands under.
        tags: Further tags of its MLflow run.
        reporter: The trial of a search: learns the objective of each epoch, and may end the
            training early. Such a run is finished, but keeps no checkpoints and is not tested.
        require_data: Refuses a fingerprint of data other than those that the search is over.
    """

    parent_run_id: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    reporter: Reporter | None = None
    require_data: Callable[[str], None] | None = None


@dataclass
class Prepared:
    """An experiment that has passed every check and has written nothing yet."""

    config: Config
    data: FlairDataModule
    spec: NetworkSpec
    task: SegmentationTask
    store: Store | None
    start: Path | None
    """The checkpoint from which training resumes."""


def run(
    config: Config,
    folder: Path,
    overrides: Sequence[str] = (),
    membership: Membership | None = None,
    before: Footprint | None = None,
    *,
    rank: Rank | None = None,
    line: socket.socket | None = None,
    extended: bool = False,
) -> float | list[float] | None:
    """Train and test one experiment and keep everything about it.

    In a folder that holds an unfinished run of the same experiment, that run resumes from its last
    checkpoint, in the same MLflow run; a finished one is not run again.

    Args:
        config: The experiment's.
        folder: Where checkpoints and results go; a new one is removed if the run is refused.
        overrides: Hydra's, as typed by the user; kept with the run.
        membership: The sweep or search that the run belongs to.
        before: What was in the folder before Hydra wrote there; None: what is there now.
        rank: Which process of the training this is; None: by what the environment says.
        line: To the process that has started this one.
        extended: Whether the folder's run is to be trained for more epochs than it was begun with,
            those of `config`.

    Returns:
        The objective: a number, or a list for several.

    Raises:
        FlairError: A mistake of the user's, before training or in the data while it runs.
    """
    from flair2_exp.training.device import forget_unreadable_ranks

    belongs, before = membership or Membership(), before or Footprint.of(folder)
    with _removed_if_refused(before, keep=False):
        rank = rank or rank_of(config.trainer.devices, config.trainer.num_nodes)
    forget_unreadable_ranks()
    lock = locked(folder, "choose another folder with hydra.run.dir=FOLDER")
    alone = lock if rank.first else nullcontext(False)
    others = Peers(rank, folder, line)
    with (
        signals_as_exceptions() as interruption,
        others as peers,
        _raised_as(interruption),
        alone as exclusive,
    ):
        life = _Life(
            config, RunFolder(folder), belongs, interruption, peers, exclusive, before, extended
        )
        return life.run(overrides)


@contextmanager
def _by_peers(peers: Peers) -> Iterator[None]:
    """Raise another process's failure in place of what came of it here."""
    from flair2_exp.training.device import leave_group

    try:
        yield
        leave_group()
    except BaseException as error:
        wanted = peers.cause(error)
        peers.settle()
        leave_group()
        if wanted is error:
            raise
        raise wanted from error


@dataclass
class _Life:
    """One run, in a folder that this process holds.

    Attributes:
        config: The experiment's.
        folder: The run's.
        membership: The sweep or search that it belongs to.
        interruption: A signal that asks this process to end.
        peers: The other processes of a training on several devices.
        exclusive: Whether no other process can be at work in the folder.
        before: What was in the folder before anything was written for this run.
        extended: Whether the folder's run is to be trained for more epochs.
    """

    config: Config
    folder: RunFolder
    membership: Membership
    interruption: Interruption
    peers: Peers
    exclusive: bool
    before: Footprint
    extended: bool = False

    @property
    def first(self) -> bool:
        """Whether this is the process of the training that writes."""
        return self.peers.rank.first

    def run(self, overrides: Sequence[str]) -> float | list[float] | None:
        """Do what is left to do of the run; return its objective."""
        from flair2_exp.lifecycle.assembly import describe_data
        from flair2_exp.lifecycle.results import finish

        config, folder = self.config, self.folder
        if self.first:
            _scrub_hydras_files(folder)
        earlier = read_record(folder)
        if self.extended and earlier is not None:
            earlier.extend(config, folder)
        keep = earlier is not None or not self.first
        safe = partial(_safe_and_resumed, folder, self._command())
        worded = partial(in_words, folder.path, safe)
        with _removed_if_refused(self.before, keep=keep), worded():
            prepared = prepare(
                config,
                folder,
                earlier,
                first=self.first,
                processes=self._processes(),
                extended=self.extended,
            )
            self._count_devices()
            if self.membership.require_data is not None:
                self.membership.require_data(prepared.data.fingerprint)
            if earlier is not None:
                earlier.require_same(config, prepared.data.fingerprint, folder)
                if earlier.is_done(test=config.test):
                    log.info("finished before: %s", folder)
                    _deliver(folder, earlier, prepared.store)
                    self._tell_pruned(earlier)
                    return objective(config, earlier.scores)
            self._require_same_devices(prepared, earlier)
            record = earlier or RunRecord.of(
                config, prepared.data.fingerprint, folder, prepared.data.fingerprint_of("test")
            )
            if record.training and config.train and config.test and not record.pruned:
                _require_best(folder)
            tracked = self._open(prepared, overrides, record)
            if self.extended and self.first:  # results of the shorter training
                for path in (folder.metrics, folder.confusion):
                    path.unlink(missing_ok=True)
        self._tell_pruned(record)
        self.peers.on_stuck = partial(self._end, record)
        try:
            room = reserved(folder.reserve) if self.first else nullcontext()
            peers = _by_peers(self.peers)
            with tracked, room, worded(), peers, _raised_as(self.interruption):
                reported = self.membership.reporter is not None
                self.peers.start(config, overrides, reported=reported)
                log_config(config, record, tracked)
                weights = prepared.task.loss_options.class_weights
                described = describe_data(config, prepared.data, weights)
                tracked.log_json(described, "provenance/dataset.json")
                metrics = self._train_and_test(prepared, tracked, record)
                value = objective(config, metrics)
                if self.first:
                    if record.pruned:
                        shutil.rmtree(folder.checkpoints, ignore_errors=True)
                        tracked.set_tags({Tag.PRUNED: True})
                    finish(config, folder, tracked, metrics, record.tags)
                # All is sent or kept now. What ends this process while it waits for the store does
                # not undo that the run is finished.
                tracked.flush()
                record.finish(FINISHED)
                self._write(record)
        except BaseException as error:
            # Another process resumes in this folder, or only the delivery was interrupted.
            if getattr(error, "disowned", False) or record.status == FINISHED:
                raise
            self._end(record, error)
            if record.status in (KILLED, PREEMPTED) and self.first and not self.membership.tags:
                error.add_note(f"this resumes: {self._command()}")
            raise
        return value

    def _end(self, record: RunRecord, error: BaseException) -> None:
        """Note what ended the run."""
        record.finish(status_of(error), scrub(f"{type(error).__name__}: {error}"))
        with suppress(OSError):  # the disk may be what the run failed of
            self._write(record)

    def _require_same_devices(self, prepared: Prepared, earlier: RunRecord | None) -> None:
        """Refuse a start within an epoch that other devices had divided."""
        from flair2_exp.training.checkpoint import read_checkpoint, require_same_devices

        start = prepared.start
        if start is None and self.config.train and self.config.checkpoint:
            start = Path(self.config.checkpoint)
        if start is not None and not (earlier is not None and earlier.training):
            require_same_devices(start, read_checkpoint(start), self.peers.rank.world)

    def _processes(self) -> int:
        """Return how many processes share the cores that this one sees; srun binds its own."""
        rank = self.peers.rank
        return max(1, rank.per_node) if rank.starter == "run" else 1

    def _count_devices(self) -> None:
        """Settle how many processes `trainer.devices=-1` are, now that torch is there to ask."""
        from flair2_exp.training.device import gpus

        options = self.config.trainer
        if options.devices == -1:
            self.peers.rank = self.peers.rank.counted(-1, options.num_nodes, gpus())

    def _open(self, prepared: Prepared, overrides: Sequence[str], record: RunRecord) -> Run:
        """Start or resume the MLflow run, or make what stands in for it; note it in the folder.

        Raises:
            TrackingError: The store does not take it, or another process is writing this run.
        """
        from flair2_exp.tracking.provenance import collect
        from flair2_exp.tracking.run import open_run, valid_tags

        tracking = self.config.tracking
        origin = collect(overrides)
        parent = self.membership.parent_run_id
        # Noted in the folder as well, from which the MLflow run could be made again.
        record.tags = valid_tags(
            {
                **record.tags,
                Tag.FOLDER: self.folder.path.absolute(),  # it may have moved
                **origin.tags(),
                **self.membership.tags,
                **tracking.tags,
                **({Tag.PARENT: parent} if parent else {}),
            }
        )
        run = open_run(
            prepared.store,
            tracking.experiment,
            run_name(self.config, record),
            self.folder.unsent,
            tags=record.tags,
            run_id=record.run_id,
            lookup=(Tag.FOLDER, Tag.IDENTITY),
            take_over=self.exclusive,
        )
        if tracking.system_metrics:
            run.watch_system()
        record.status = TRAINED if record.training else RUNNING
        record.run_id, record.error = run.run_id, ""
        record.store = "" if prepared.store is None else prepared.store.address
        record.start = record.start or int(time.time() * 1000)
        if self.first:
            write_text(self.folder.config, resolved_yaml(self.config))
        self._write(record)
        run.log_files(origin.files())
        # The commit and the changes of above are of this package's checkout alone.
        for name, path in own_code(self.config).items():
            run.log_text(path.read_text("utf-8", errors="replace"), f"code/{name}")
        return run

    def _command(self) -> str:
        """Return the command that resumes this run."""
        if self.membership.tags:  # a sweep and a search find their runs themselves
            return "the same command"
        return resume_command(self.folder)

    def _write(self, record: RunRecord) -> None:
        if self.first:
            record.write(self.folder)

    def _tell_pruned(self, record: RunRecord) -> None:
        """Let a trial know that its training had been stopped early by an earlier process."""
        reporter = self.membership.reporter
        if record.pruned and reporter is not None and self.first:
            reporter.prune(int(record.training["train/epochs"]))

    def _train_and_test(self, prepared: Prepared, run: Run, record: RunRecord) -> dict[str, float]:
        """Fit, then test the best checkpoint; return all numbers of `metrics.json`."""
        from flair2_exp.lifecycle.assembly import build_trainer
        from flair2_exp.lifecycle.opening import opening, smaller
        from flair2_exp.lifecycle.results import save_results, title
        from flair2_exp.models.registry import count_parameters
        from flair2_exp.training.callbacks import metrics_under

        config, data, task = self.config, prepared.data, prepared.task
        watchers = _Watchers.of(config, data, self.membership.reporter, first=self.first)
        trainer = build_trainer(
            config,
            self.folder,
            run,
            watchers.all(),
            self.interruption,
            self.peers.rank,
            smaller(config, count_parameters(task.model)),
        )
        self.peers.meet()
        begins = opening(config, data, task.model, trainer, prepared.start, self.folder, run)
        log.info("%s\n", begins)
        checkpoint = Path(config.checkpoint) if config.checkpoint else None

        def evaluate(loop: Callable[..., object]) -> None:
            loop(task, datamodule=data, ckpt_path=tested, verbose=False, weights_only=True)

        if config.train:
            if not record.training:
                start = prepared.start or checkpoint
                trainer.fit(task, datamodule=data, ckpt_path=start, weights_only=True)
                record.training = watchers.training(trainer)
                record.pruned = watchers.pruning.stopped_epoch is not None
                record.status = TRAINED
                self._write(record)
            tested: Path | None = self.folder.best
        else:
            tested = checkpoint
            evaluate(trainer.validate)
            measured = metrics_under(trainer, "val/")
            record.training = {**measured, **as_best(measured)}
        metrics = dict(record.training)
        if record.pruned:
            return metrics
        if config.test:
            evaluate(trainer.test)
            metrics |= watchers.test(task, trainer)
            if tested is None:  # weights from elsewhere: what is predicted later has its scaling
                trainer.save_checkpoint(self.folder.best, weights_only=True)
            if trainer.is_global_zero:
                heading = title(config, metrics["test/miou"])
                rows = watchers.panel.rows
                save_results(task.results, task.nomenclature, rows, self.folder, heading)
        elif any(name.startswith("inference/") for name in config.objectives):
            trainer.loggers = []  # its scores are known: those of the best epoch
            evaluate(trainer.validate)
            metrics |= watchers.stopwatch.of_validation()
        metrics["model/parameters"] = float(count_parameters(task.model))
        return metrics


@dataclass(frozen=True)
class _Watchers:
    """The callbacks whose findings become the run's numbers."""

    stopwatch: Stopwatch
    scores: Scores
    panel: PanelCollector
    pruning: Pruning
    reports: bool

    @classmethod
    def of(
        cls, config: Config, data: FlairDataModule, reporter: Reporter | None, *, first: bool
    ) -> _Watchers:
        from flair2_exp.training.callbacks import Scores, Stopwatch
        from flair2_exp.training.panel import PanelCollector, shown_bands
        from flair2_exp.training.pruning import Pruning

        # Searches that prune have one objective; what only the end measures cannot be reported.
        reported = isinstance(config.objective, str) and config.objective.startswith("val/")
        return cls(
            Stopwatch(),
            Scores(config.callbacks.best.monitor, config.callbacks.best.mode),
            PanelCollector(
                config.callbacks.panel.patches,
                data.counts["test"],
                shown_bands(data.bands),
                stretched=data.source.scale != 255,
                undone=data.normalisation.undone,
            ),
            Pruning(reporter if first else None, config.objective),
            reports=reporter is not None and reported,
        )

    def all(self) -> list[Stopwatch | Scores | PanelCollector | Pruning]:
        """Return the callbacks for the trainer."""
        pruning = [self.pruning] if self.reports else []
        return [self.stopwatch, self.scores, self.panel, *pruning]

    def training(self, trainer: Trainer) -> dict[str, float]:
        """Return what training measured."""
        last = {n: v for n, v in self.scores.last.items() if n != "epoch"}
        epochs = {"train/epochs": float(trainer.current_epoch)}
        return {**last, **as_best(self.scores.best), **self.stopwatch.seconds, **epochs}

    def test(self, task: SegmentationTask, trainer: Trainer) -> dict[str, float]:
        """Return scores and times of a test."""
        from flair2_exp.score import most_frequent_class_miou
        from flair2_exp.training.callbacks import metrics_under

        seconds = self.stopwatch.seconds["inference/seconds"]
        return {
            **metrics_under(trainer, "test/"),
            "test/patches": float(len(task.results)),  # damaged ones may be left out
            "test/miou_most_frequent_class": most_frequent_class_miou(
                task.test_confusion(), task.nomenclature.scored
            ),
            "inference/seconds": seconds,
            "inference/seconds_per_patch": seconds / max(1, len(task.results)),
        }


def as_best(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return metrics of the best checkpoint under their names in results: `best/val/miou`.

    `val/miou` alone is an epoch's, of the last one where there is one number.
    """
    return {f"best/{name}": value for name, value in metrics.items()}


def resume_command(folder: RunFolder) -> str:
    """Return the command that resumes a run."""
    return f"flair2-exp {shlex.join([f'resume={folder.path.absolute()}'])}"


def read_record(folder: RunFolder) -> RunRecord | None:
    """Return what a folder says about the run in it; None where it holds none.

    Raises:
        ConfigError: It holds checkpoints, and not (or not readably) whose they are.
    """
    record = RunRecord.read(folder)
    if record is None and folder.has_checkpoints():
        raise ConfigError(
            f"{folder} holds checkpoints, but no readable {folder.record.name} that says of which "
            "experiment.\nChoose another folder, or remove that one."
        )
    return record


def _safe_and_resumed(folder: RunFolder, command: str) -> str:
    """Return which checkpoint is whole, and what resumes from there."""
    from flair2_exp.lifecycle.opening import epochs_of

    kept = next((path for path in (folder.last, folder.previous) if path.exists()), None)
    safe = "No checkpoint was written yet"
    if kept is not None:
        epochs = epochs_of(kept)
        safe = f"{kept}{'' if epochs is None else f' ({epochs} epochs)'} is whole"
    return f"{safe}; this resumes: {command}"


@contextmanager
def _raised_as(interruption: Interruption) -> Iterator[None]:
    """Raise what a signal raised, whatever became of that on its way.

    Lightning makes a `SystemExit` of Ctrl-C; a data loader whose worker the same signal has ended
    raises an error of its own.
    """
    try:
        yield
    except BaseException as error:
        wanted = interruption.outcome(interrupt_of(error))
        if wanted is error:
            raise
        raise wanted from error


def run_name(config: Config, record: RunRecord) -> str:
    """Return what a run is called on MLflow's pages, where many of one row and seed may stand."""
    row = record.row if record.seed < 0 else f"{record.row} seed={record.seed}"
    own = f"{row} {record.tags.get(Tag.DATASET, '')} {record.identity[:_SHORT]}"
    return scrub(config.tracking.run_name or own)


def _deliver(folder: RunFolder, record: RunRecord, store: Store | None) -> None:
    """Send what a finished run could not; what is in the way costs a warning."""
    from flair2_exp.lifecycle.delivery import settle

    if store is not None and record.run_id:
        try:
            settle(folder, record, store)
        except TrackingError as error:
            log.warning("%s", error)


def prepare(
    config: Config,
    folder: RunFolder,
    earlier: RunRecord | None,
    *,
    first: bool,
    processes: int = 1,
    extended: bool = False,
) -> Prepared:
    """Check server, device, checkpoint, data and network, in this order, and build them.

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
    from flair2_exp.lifecycle.assembly import (
        build_data,
        build_task,
        needs_statistics,
        network_spec,
        open_store,
        recorded_normalisation,
        require_parts,
        require_store,
    )

    # The store is asked before torch is imported, and made when all else is well.
    if first:
        require_store(config)
    with held_back():  # an exception within torch's import aborts the process in C++
        import torch  # noqa: F401
    from flair2_exp.training.device import require_device

    require_device(config.trainer, config.data.workers)
    checkpoint = Path(config.checkpoint) if config.checkpoint else None
    recorded: Normalisation | None = None  # of a trained network, whose statistics stay its own
    if checkpoint is not None:
        from flair2_exp.training.checkpoint import read_checkpoint

        content = read_checkpoint(checkpoint)
        recorded = recorded_normalisation(config, checkpoint, content)
    elif config.model.weights and not config.train:
        recorded = _of_weights(config, Path(config.model.weights))
    _settle_libraries(config, processes)
    # A sample's patch size is known before it is written, which is done when all else is well.
    sample = config.dataset.sample
    data: FlairDataModule | None = None
    if sample is None:
        data = build_data(config, normalisation=recorded)
        patch_size = data.patch_size
    else:
        patch_size = sample.patch_size
    source = data.source if data else None
    spec = network_spec(config, patch_size, source)
    require_parts(config, spec, source)
    if checkpoint is not None:
        from flair2_exp.training.checkpoint import require_same_model

        require_same_model(checkpoint, content, spec)
    start = resume_point(folder) if earlier is not None and not earlier.training else None
    # Weights that a checkpoint will replace are not read, let alone downloaded.
    resumes = start is not None or (earlier is not None and bool(earlier.training))
    if data is None and needs_statistics(config):
        data = build_data(config, normalisation=recorded)
    task = build_task(config, spec, data=data, fresh=not resumes, source=source)
    origin = start if extended else checkpoint if not resumes else None
    if origin is not None and config.train:
        from flair2_exp.training.checkpoint import (
            read_checkpoint,
            require_training_state,
            warn_of_schedule,
        )

        epochs, content = config.trainer.max_epochs, read_checkpoint(origin)
        require_training_state(origin, content, task.hparams, epochs=epochs)
        warn_of_schedule(origin, content, task.hparams, epochs=epochs)
    data = build_data(config, normalisation=recorded) if data is None else data
    store = open_store(config) if first else None
    return Prepared(config, data, spec, task, store, start)


def _of_weights(config: Config, path: Path) -> Normalisation | None:
    """Return by what the inputs of tested weights were normalised; None where they do not say."""
    from flair2_exp.lifecycle.assembly import needs_statistics, recorded_normalisation
    from flair2_exp.models.tensors import read_file

    if not needs_statistics(config):
        return None
    content = read_file(path)
    if isinstance(content, dict) and "hyper_parameters" in content:
        return recorded_normalisation(config, path, content)
    log.warning("%s holds no statistics: those of these training patches are used", path)
    return None


_EXPECTED_WARNINGS = (
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
    import os
    import warnings

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


def resolved_yaml(config: Config, members: Mapping[str, object] | None = None) -> str:
    """Return the whole config as YAML, every interpolation resolved, credentials removed.

    Args:
        config: The experiment's.
        members: What further stands in it: the node `record.MEMBERS`, under its name.
    """
    import yaml

    values = {**plain(config), **(members or {})}
    return yaml.safe_dump(scrub_tree(values), sort_keys=False, allow_unicode=True)


def _scrub_hydras_files(folder: RunFolder) -> None:
    """Remove credentials from what Hydra has kept of the command."""
    import yaml

    for path in folder.hydra.glob("*.yaml"):
        try:
            content = yaml.safe_load(path.read_text("utf-8"))
        except (OSError, ValueError, yaml.YAMLError):  # it is not Hydra's
            continue
        clean = scrub_tree(content)
        if clean != content:
            write_text(path, yaml.safe_dump(clean, sort_keys=False, allow_unicode=True))


def log_config(
    config: Config, record: RunRecord, run: Run, members: Mapping[str, object] | None = None
) -> None:
    """Keep with the run its config, what of it decides the result, and which data it reads.

    A few options are parameters (`config.identity.outline`): MLflow's tables show every one.
    """
    further = members or {}
    run.log_params({**outline(config), **further}, {**plain(config), **further})
    if record.fingerprint:
        root = config.dataset.root or config.dataset.store or ""
        profile = {name.rpartition(".")[2]: record.tags.get(name, "") for name in _OF_DATA}
        run.log_dataset(config.dataset.name, record.fingerprint[:_SHORT_DATA], root, profile)
    run.log_text(resolved_yaml(config, members), CONFIG)
    run.log_json(scrub_tree(record.deciding), DECIDING)


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


def _require_best(folder: RunFolder) -> None:
    """Refuse to test a trained run whose best checkpoint is gone or torn; no other has its scores.

    Raises:
        CheckpointError: It cannot be read.
    """
    from flair2_exp.training.checkpoint import read_checkpoint

    try:
        read_checkpoint(folder.best)
    except CheckpointError as error:
        raise CheckpointError(
            f"{str(error).splitlines()[0]}\nThis run is trained, and that is what its test needs: "
            f"put it back, or remove {folder} to train anew."
        ) from error


def objective(config: Config, metrics: Mapping[str, float]) -> float | list[float] | None:
    """Return the value (or values) of `objective` for a sweeper.

    Of what validation measures (`val/...`), it is that of the best checkpoint.

    Raises:
        ConfigError: The run does not measure it; the message offers what it does.
    """
    measured = {**metrics, **{n.removeprefix("best/"): v for n, v in metrics.items()
                              if n.startswith("best/val/")}}  # fmt: skip
    for name in config.objectives:
        if name not in measured:
            from flair2_exp.training.pruning import UnknownObjectiveError

            names = [each for each in measured if not each.startswith(("test/", "best/"))]
            raise UnknownObjectiveError(
                f"objective={name} was never logged: it is not among the values that the run "
                f"measured; {nearest(name, names)}"
            )
    values = [measured[name] for name in config.objectives]
    return values if isinstance(config.objective, list) else values[0]


@contextmanager
def _removed_if_refused(before: Footprint, *, keep: bool) -> Iterator[None]:
    """Remove what was written for a run that is refused before it begins, and nothing else.

    Args:
        before: What was in its folder, which may have files of the user's in it.
        keep: The folder holds an earlier part of the run, or is another process's to remove.
    """
    try:
        yield
    except FlairError:
        if not keep:
            before.restore()
        raise
