"""The part of a search that knows of FLAIR: what the sweeper of conf/tune/ calls.

Before the first trial a search is checked, and notes which data it is made on. All trials stand
under one MLflow run. At the end the best trial becomes an experiment file, and beside it the
default, so that the two can be trained over several seeds and compared: the test split is looked at
then, for the first time.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from flair2_exp.config.compose import typed
from flair2_exp.config.experiment import Config
from flair2_exp.config.fields import plain
from flair2_exp.config.groups import config_folder
from flair2_exp.config.identity import contents, decides
from flair2_exp.engines.gpus import visible_gpus
from flair2_exp.engines.launcher import engine_of
from flair2_exp.errors import ConfigError, DataError, TrackingError
from flair2_exp.lifecycle import assembly
from flair2_exp.lifecycle.folder import RunFolder, require_own_sweep, require_place, run_folders
from flair2_exp.lifecycle.record import place_of
from flair2_exp.sweeps.delivery import deliver_runs
from flair2_exp.sweeps.plan import distributes, require_launcher
from flair2_exp.tracking.tags import Tag
from flair2_exp.tracking.view import tagged_runs_page
from flair2_exp.values import flatten, render

if TYPE_CHECKING:
    from flair2_exp.optuna_sweeper.results import SearchResult
    from flair2_exp.optuna_sweeper.trial import RunningTrial
    from flair2_exp.sweeps.study_figures import Drawn
    from flair2_exp.tracking.run import Run

log = logging.getLogger(__name__)

PARENT: Final = "mlflow_parent"
"""Study attribute: the id of the MLflow run that all trials stand under."""
FIGURES: Final = "figures"

_FILES: Final = ("model.weights", "model.encoder_weights", "checkpoint")
"""Options that name files of weights."""


# --- before the search --------------------------------------------------------------------------


def on_start(config: DictConfig) -> dict[str, str]:
    """Refuse what no search could run with, and say on what the search is made.

    Called by every worker, before it opens the study.

    Returns:
        Facts that must be equal for all commands on one study: which data and weights they read
        (`facts_of`). Where the jobs run on other machines, the places and settings that lead to
        them; each job then checks the files themselves (`require_study_data`).

    Raises:
        FlairError: A value out of bounds or in conflict with another; data or weights that are not
            there; or several seeds.
    """
    options = typed(config)
    _require_folder(config, options)
    require_launcher(config.hydra.launcher)
    assembly.require_store(options)
    _refuse_seeds(config.hydra)
    if distributes(config.hydra.launcher):  # the files may not be visible from here
        named = {name: flatten(plain(options))[name] for name in _FILES}
        return {"place": _joined(place_of(options) | named)}
    engine = engine_of(config.hydra.launcher)
    assembly.require_files(options)
    if not (engine and visible_gpus()):  # asking CUDA would take room on the trials' GPU
        assembly.require_feasible(options)
    dataset = options.dataset
    if dataset.sample is not None and dataset.root is not None:
        # Made now rather than by the first trial, so that the study knows its data from the start.
        from flair2_exp.data.sample.tree import ensure_sample

        ensure_sample(dataset.root, dataset.sample)
    return facts_of(options, assembly.data_fingerprint(options))


def _require_folder(config: DictConfig, options: Config) -> None:
    """Refuse a folder that is not meant for a search, or holds something else."""
    from flair2_exp.optuna_sweeper.storage import resolve

    folder = Path(config.hydra.sweep.dir).absolute()
    storage = Path(resolve(options.tune.storage, folder).rpartition(":///")[2])
    require_place(folder)
    require_own_sweep(folder, (storage, *map(Path, plain(options.paths).values())))


def facts_of(config: Config, fingerprint: str) -> dict[str, str]:
    """Return on what an experiment is made, for comparison with others of its study.

    A fingerprint is that of the inputs that are read, so only those of experiments that read the
    same are compared.
    """
    data = f"data ({', '.join(sorted(config.reads))})"
    return {data: fingerprint[:16], "weights": _joined(contents(config))}


def _joined(values: Mapping[str, object]) -> str:
    named = (f"{name}={render(value)}" for name, value in values.items() if value is not None)
    return ", ".join(named) or "none"


def require_study_data(trial: RunningTrial, config: Config, fingerprint: str) -> None:
    """Refuse to train a trial on other data or from other weights than its study.

    Each job asks once its data are known: files may have changed since the search began, and those
    of another machine were not seen before. What is searched over may differ between trials.

    Raises:
        DataError: They are others than the study's, or than those of another of its trials.
    """
    facts = facts_of(config, fingerprint)
    if trial.params.keys() & set(_FILES):
        del facts["weights"]
    if any(name.partition(".")[0] in ("dataset", "split") for name in trial.params):
        facts = {name: value for name, value in facts.items() if name == "weights"}
    changes = trial.fact_changes(facts)
    if changes:
        raise DataError(
            f"study {trial.study_name} was made on something else: {'; '.join(changes)}.\n"
            "Set it back, or start another search with tune.name=NAME."
        )


def may_change(key: str) -> bool:
    """Return whether an option or a group may differ between two commands on one study.

    It may where no result depends on it: files may lie elsewhere on another machine, since the
    study's facts say which they are.
    """
    if key in _groups():  # the files of the others, as `compat`, set options that decide
        return key in ("tracking", "paths")
    return not decides(key)


@functools.cache
def _groups() -> frozenset[str]:
    return frozenset(path.name for path in config_folder().iterdir())


def _refuse_seeds(hydra: DictConfig) -> None:
    """Refuse a search over seeds: it would look like a comparison and be none."""
    from flair2_exp.optuna_sweeper.space import read_space

    loader = GlobalHydra.instance().config_loader()
    if "seed" in read_space(hydra.sweeper.params, hydra.overrides.task, loader).dimensions:
        raise ConfigError(
            "seed: a search over seeds finds the luckiest one. Give one seed; tune.repeat_best=3 "
            "trains the best and the default with three."
        )


# --- the parent run -----------------------------------------------------------------------------


def on_create(config: DictConfig) -> dict[str, Any]:
    """Make the study's MLflow run, and return its id as an attribute of the study.

    Called by the one worker that makes the study.

    Raises:
        FlairError: The MLflow store does not answer.
    """
    options = typed(config)
    if not options.tracking.enabled:
        return {}
    run = _open_parent(options, RunFolder(Path(config.hydra.sweep.dir)))
    run.release()  # to all workers: `on_finish` of one of them resumes it
    return {PARENT: run.run_id}


def _open_parent(config: Config, folder: RunFolder, run_id: str | None = None) -> Run:
    """Make the study's MLflow run, or resume the one of that id."""
    from flair2_exp.tracking.run import open_run

    tags: dict[str, object] = {
        Tag.KIND: "study",
        Tag.STUDY: config.tune.name,
        Tag.SWEEP: config.sweep.name,
        Tag.FOLDER: folder.path.absolute(),
    }
    store, name = assembly.open_store(config), config.tracking.experiment
    return open_run(
        store, name, config.sweep.name, folder.unsent, tags={} if run_id else tags, run_id=run_id
    )


def _parent(result: SearchResult, config: Config) -> Run:
    """Return the study's MLflow run, or what stands in for it.

    Where the store has lost it, it is made again, and so are those of the trials.
    """
    from flair2_exp.tracking.run import Run

    run_id = str(result.study.user_attrs.get(PARENT) or "")
    if not run_id:
        return Run()
    folder = RunFolder(result.folder)
    try:
        store = assembly.open_store(config)
        if store is None or store.find(run_id) is not None:
            return _open_parent(config, folder, run_id)
        log.warning("MLflow (%s) has lost the study's run: it is made again.", store)
        run = _open_parent(config, folder)
        result.study.set_user_attr(PARENT, run.run_id)
        deliver_runs(run_folders(folder.path), store, run.run_id)
        return run
    except TrackingError as error:
        log.warning("the study's MLflow run gets no results: %s", error)
        return Run()


# --- the end ------------------------------------------------------------------------------------


def on_finish(result: SearchResult, config: DictConfig) -> None:
    """Write down the best, once the study is complete; one worker does."""
    from flair2_exp.sweeps.study_best import repeat, write_experiments

    if not result.leader:
        log.info("The worker that ended the last trial writes experiment files and figures.")
    if not result.leader or not result.best:
        return
    options = typed(config)
    with _parent(result, options) as parent:
        deliver_runs(run_folders(result.folder), parent.store)
        files = write_experiments(result)
        log.info("Run the best: flair2-exp experiment=%s", files[0])
        drawn = _record(result, files, parent)
        synthetic = options.is_synthetic
        page = _show(result, drawn, files, parent, synthetic)
        if options.tune.repeat_best:
            repeat(result, options, list(config.hydra.overrides.task), parent)
            page = _show(result, drawn, files, parent, synthetic)  # with what that said
    if page is not None:
        print(f"study: {page}", flush=True)


def _record(result: SearchResult, files: Sequence[Path], parent: Run) -> list[Drawn]:
    """Hand trials, best values, experiment files and figures to the study's MLflow run.

    Return the figures.
    """
    from flair2_exp.optuna_sweeper.results import state_name
    from flair2_exp.sweeps.study_figures import write_figures

    states = [state_name(trial) for trial in result.trials]
    best = result.best[0]
    parent.log_metrics(
        {f"trials/{state}": states.count(state) for state in sorted(set(states))}
        | {f"best/{name}": each for name, each in zip(result.names, best.values, strict=True)}
    )
    parent.set_tags(
        {
            Tag.BEST_TRIAL: best.number,
            Tag.STUDY: result.study.study_name,
            Tag.FOLDER: result.folder.absolute(),
        }
    )
    parent.log_artifact(result.folder / "trials.csv")
    for path in files:
        parent.log_artifact(path, "experiment")
    place = tagged_runs_page(parent.experiment_id, Tag.STUDY, result.study.study_name)
    parent.describe(f"{summary(result)}\n\n[All trials, by test score]({place})\n")
    try:
        drawn = write_figures(result, result.folder / FIGURES)
        for each in drawn:
            parent.log_artifact(each.path, FIGURES)
    except Exception as error:  # the study is what it is, drawn or not
        log.warning("no figures: %s\nThe study is kept; the same command draws it again.", error)
        return []
    return drawn


def _show(
    result: SearchResult,
    drawn: Sequence[Drawn],
    files: Sequence[Path],
    parent: Run,
    synthetic: bool,
) -> Path | None:
    """Write the study's page, and hand it to the study's MLflow run; None where that fails."""
    from flair2_exp.sweeps.study_page import write_page

    try:
        folder = (result.folder / FIGURES).absolute()
        page = write_page(result, drawn, files, folder, synthetic=synthetic)
        parent.log_artifact(page, FIGURES)
    except Exception as error:  # likewise
        log.warning("no page: %s\nThe study is kept; the same command writes it again.", error)
        return None
    return page


def summary(result: SearchResult) -> str:
    """Return the study in Markdown: its best trials with their parameters."""
    swept = list(result.space.dimensions)
    rows = [["trial", *result.names, *swept], ["---"] * (1 + len(result.names) + len(swept))]
    for trial in result.best[:10]:
        params = (trial.params.get(name) for name in swept)
        cells = [f"{each:.4g}" if isinstance(each, float) else str(each) for each in params]
        rows.append([str(trial.number), *(f"{value:.6g}" for value in trial.values), *cells])
    head = f"Study {result.study.study_name}: {len(result.trials)} trials\n"
    return "\n".join([head, *(f"| {' | '.join(row)} |" for row in rows)])
