"""What a search leaves besides its study: one MLflow parent, experiment files, figures, a check.

`on_create` and `on_finish` are called by the sweeper that conf/tune/ configures. The best trial
becomes an experiment file, which composes to that trial's very config, and beside it the default's,
so that the two can be trained over several seeds and compared. The test split is looked at then,
for the first time.
"""

from __future__ import annotations

import copy
import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from flair2_exp.config import schema
from flair2_exp.errors import ConfigError, FlairError, TrackingError
from flair2_exp.files import write_text
from flair2_exp.run.assembly import open_store, require_files
from flair2_exp.sweeps.plan import distributes

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from flair2_exp.optuna_sweeper.search import SearchResult
    from flair2_exp.tracking.run import Run

log = logging.getLogger(__name__)

PARENT: Final = "mlflow_parent"
"""Study attribute: the id of the MLflow run that all trials stand under."""
FIGURES: Final = "figures"
REPEATS: Final = "repeat_best"

# Not part of what was found: the search itself, where results go, and what every run says anew.
_LEFT_OUT: Final = ("tune", "sweep", "tracking", "paths", "objective", "test", "name", "quirk")
# Groups whose files set other nodes than their own, which the values therefore hold.
_PATCHES: Final = ("experiment", "preset", "sweep", "tune", "quirk", "tracking", "paths")


# --- before the search --------------------------------------------------------------------------

# Strategies whose processes are copies of the job's, not the command line run again.
_COPYING: Final = ("spawn", "fork", "notebook")


def on_start(config: DictConfig) -> None:
    """Refuse what no search could run with; called by every worker.

    Args:
        config: The command's config, with Hydra's part.

    Raises:
        FlairError: A value out of bounds or in conflict with another; data or weights that are not
            there; several seeds; or trials on several devices whose processes would join the study
            as workers of their own.
    """
    options = _typed(config)
    trainer = options.trainer
    _refuse_seeds(config.hydra)
    if distributes(config.hydra.launcher):
        return
    require_files(options)
    if any(word in trainer.strategy for word in _COPYING) or not _several_devices(trainer):
        return
    raise ConfigError(
        f"trainer.devices={trainer.devices}: in a search Lightning's further processes would run "
        "the command again, and join the study as workers of their own.\n"
        "Give trainer.devices=1 and start the command once a device (CUDA_VISIBLE_DEVICES=0, 1, "
        "...): they share the study. Or hydra/launcher=submitit_slurm."
    )


def _refuse_seeds(hydra: DictConfig) -> None:
    """Refuse a search over seeds: it would look like a comparison and be none."""
    from flair2_exp.optuna_sweeper.space import read_space

    loader = GlobalHydra.instance().config_loader()
    if "seed" in read_space(hydra.sweeper.params, hydra.overrides.task, loader).dimensions:
        raise ConfigError(
            "seed: a search over seeds finds the luckiest one. Give one seed; tune.repeat_best=3 "
            "trains the best and the default with three."
        )


def _several_devices(trainer: schema.TrainerConfig) -> bool:
    if trainer.num_nodes > 1 or trainer.devices != -1:
        return trainer.num_nodes > 1 or trainer.devices > 1
    import torch

    return torch.cuda.device_count() > 1


# --- the parent run -----------------------------------------------------------------------------


def on_create(config: DictConfig) -> dict[str, Any]:
    """Make the study's MLflow run; called by the one worker that makes the study.

    Args:
        config: The command's config, with Hydra's part.

    Returns:
        Attributes for the study: the run's id, for the trials of all workers.

    Raises:
        FlairError: No trial could run with this config, or the MLflow store does not answer.
    """
    from flair2_exp.tracking.process import HOST_TAG, PID_TAG, PROCESS_TAG
    from flair2_exp.tracking.run import TrackedRun

    options = _typed(config)
    store = open_store(options)
    if store is None:
        return {}
    run = TrackedRun.start(
        store,
        store.ensure_experiment(options.tracking.experiment),
        name=options.sweep.name,
        pending=Path(config.hydra.sweep.dir) / "unsent",
        tags={
            "flair2.kind": "study",
            "flair2.study": options.tune.name,
            "flair2.sweep": options.sweep.name,
            "flair2.folder": str(Path(config.hydra.sweep.dir).absolute()),
        },
    )

    def disown(client: Any) -> None:
        # It belongs to all workers: that this one ends, or dies, does not end it.
        for name in (HOST_TAG, PID_TAG, PROCESS_TAG):
            client.delete_tag(run.run_id, name)

    store.call("making the study's run", disown)
    # Nobody ends it but `on_finish`, which goes on with it; a search that never comes there
    # (too many failures, Ctrl-C) shall not leave it RUNNING for ever.
    run.finish()
    return {PARENT: run.run_id}


def _typed(config: DictConfig) -> schema.Config:
    """The config of the command, without Hydra's part."""
    own = copy.deepcopy(config)
    del own._content["hydra"]  # type: ignore[union-attr]
    return schema.typed(own)


def _parent(result: SearchResult, options: schema.Config) -> Run:
    """The study's MLflow run, or what stands in for it."""
    from flair2_exp.optuna_sweeper.storage import open_storage
    from flair2_exp.tracking.run import NullRun, TrackedRun

    storage = open_storage(result.storage)
    study_id = storage.get_study_id_from_name(result.study_name)
    run_id = storage.get_study_user_attrs(study_id).get(PARENT)
    store = open_store(options)
    if store is None or not run_id:
        return NullRun()
    try:
        return TrackedRun.resume(store, str(run_id), pending=result.folder / "unsent")
    except TrackingError as error:
        log.warning("the study's MLflow run gets no results: %s", error)
        return NullRun()


# --- the end ------------------------------------------------------------------------------------


def on_finish(result: SearchResult, config: DictConfig) -> None:
    """Write what was found, once the study is complete; one worker does.

    Args:
        result: What the search came to.
        config: The command's config, with Hydra's part.
    """
    if not result.leader:
        log.info("The worker that ended the last trial writes experiment files and figures.")
    if not result.leader or not result.best:
        return
    options = _typed(config)
    with _parent(result, options) as parent:
        files = write_experiments(result)
        log.info("Run the best: python -m flair2_exp experiment=%s", files[0])
        _record(result, files, parent)
        if options.tune.repeat_best:
            _repeat(result, options, list(config.hydra.overrides.task), parent)


def _record(result: SearchResult, files: Sequence[Path], parent: Run) -> None:
    """Hand trials, best values, experiment files and figures to the study's MLflow run."""
    from flair2_exp.optuna_sweeper.results import state_name
    from flair2_exp.sweeps.study_figures import write_figures

    states = [state_name(trial) for trial in result.trials]
    parent.log_metrics({f"trials/{state}": states.count(state) for state in sorted(set(states))})
    best = result.best[0]
    names = result.objective or tuple(f"value_{i}" for i in range(len(best.values)))
    parent.log_metrics(
        {f"best/{name}": value for name, value in zip(names, best.values, strict=True)}
    )
    tags = {"flair2.best_trial": best.number, "flair2.study": result.study_name}
    parent.set_tags({**tags, "flair2.folder": result.folder.absolute()})
    parent.log_artifact(result.folder / "trials.csv")
    for path in files:
        parent.log_artifact(path, "experiment")
    for path in write_figures(result, result.folder / FIGURES):
        parent.log_artifact(path, FIGURES)
    parent.describe(summary(result, names))


def summary(result: SearchResult, names: Sequence[str]) -> str:
    """The study in Markdown: its best trials with their parameters."""
    swept = list(result.space.dimensions)
    lines = [f"Study {result.study_name}: {len(result.trials)} trials", ""]
    lines += [f"| trial | {' | '.join([*names, *swept])} |"]
    lines += ["|" + "---|" * (1 + len(names) + len(swept))]
    for trial in result.best[:10]:
        cells = [f"{value:.6g}" for value in trial.values]
        cells += [_cell(trial.params.get(name)) for name in swept]
        lines.append(f"| {trial.number} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# --- experiment files ---------------------------------------------------------------------------


def write_experiments(result: SearchResult) -> list[Path]:
    """Write the best trial, or each of the Pareto front, and the default as experiment files.

    Args:
        result: What the search came to.

    Returns:
        The files `experiment/best.yaml` (several objectives: `best_1.yaml`, ...; best in the first
        objective first) and `experiment/default.yaml` in the sweep's folder.
    """
    folder, best = result.folder / "experiment", result.best
    for stale in folder.glob("best_[0-9]*.yaml"):  # of a front that had more trials
        stale.unlink()
    files = []
    for place, trial in enumerate(best, start=1):
        path = folder / ("best.yaml" if len(result.direction) == 1 else f"best_{place}.yaml")
        values = ", ".join(f"{value:.6g}" for value in trial.values)
        told = ", ".join(result.objective)
        comment = f"Trial {trial.number} of the study {result.study_name}: {told} {values}"
        name = f"{result.study_name}_trial_{trial.number}"
        files.append(write_experiment(path, name, _overrides(result, trial), comment))
    comment = f"What the study {result.study_name} started from."
    path, name = folder / "default.yaml", f"{result.study_name}_default"
    files.append(write_experiment(path, name, list(result.space.fixed.values()), comment))
    return files


def _overrides(result: SearchResult, trial: FrozenTrial) -> list[str]:
    return result.space.overrides(trial.params)


def write_experiment(path: Path, name: str, overrides: Sequence[str], comment: str) -> Path:
    """Write an experiment file that composes to the config of these overrides.

    Group files come first, then every value that they do not give: presets that the overrides name
    are in the values, since a preset would win over an experiment.

    Args:
        path: The file, in a folder called `experiment`.
        name: The experiment's name.
        overrides: As on the command line.
        comment: A line for the file's head.

    Returns:
        The path.
    """
    import yaml

    wanted, choices = _composed(overrides)
    _, defaults = _composed([])
    changed = {
        group: option
        for group, option in choices.items()
        if option != defaults.get(group) and group not in _PATCHES and not group.startswith("hydra")
    }
    given, _ = _composed([f"{group}={option}" for group, option in changed.items()])
    values = _difference(given, wanted)
    content: dict[str, Any] = {}
    if changed:
        content["defaults"] = [{f"override /{group}": each} for group, each in changed.items()]
    content |= {"name": name, **values}
    head = f"# @package _global_\n# python -m flair2_exp experiment={path}\n# {comment}\n\n"
    write_text(path, head + yaml.safe_dump(content, sort_keys=False))
    return path


def _composed(overrides: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The unresolved config of overrides as plain values, and its groups' choices."""
    whole = compose("config", list(overrides), return_hydra_config=True)
    choices = {str(group): str(each) for group, each in whole.hydra.runtime.choices.items()}
    del whole._content["hydra"]  # type: ignore[union-attr]
    plain: Any = OmegaConf.to_container(whole, resolve=False)
    return {key: plain[key] for key in plain if key not in _LEFT_OUT}, choices


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are not as before, nested as they stand; lists are whole values."""
    found: dict[str, Any] = {}
    for key, value in now.items():
        if isinstance(value, Mapping) and isinstance(before.get(key), Mapping):
            inner = _difference(before[key], value)
            if inner:
                found[key] = inner
        elif key not in before or before[key] != value:
            found[key] = value
    return found


# --- the best against the default ---------------------------------------------------------------


def _repeat(
    result: SearchResult, options: schema.Config, overrides: Sequence[str], parent: Run
) -> None:
    """Train the best and the default over seeds, as a sweep with the leaderboard's report.

    It is a command of its own: finished runs are kept when it is given again.
    """
    folder = (result.folder / REPEATS).absolute()
    command = repeat_command(result, options, overrides, folder)
    log.info("%s over seeds: %s", " and ".join(repeated(result)), " ".join(command[1:]))
    # The entry point sets the variable for itself: to have Hydra hand exceptions on.
    environment = {key: each for key, each in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    done = subprocess.run(command, check=False, env=environment)
    for path in sorted((folder / "report").glob("*")):
        if path.is_file():
            parent.log_artifact(path, REPEATS)
    if done.returncode:
        raise RepeatError(
            f"training the best and the default again ended with status {done.returncode}; the "
            "study is complete, and the same command tries that again."
        )


def repeated(result: SearchResult) -> list[str]:
    """The experiment files to compare: the default, and the best in the first objective.

    Where the default is the best itself, as it may be after a short search, it stands alone.
    """
    default, _ = _composed(list(result.space.fixed.values()))
    best, _ = _composed(_overrides(result, result.best[0]))
    if best == default:
        return ["default"]
    return ["default", "best" if len(result.direction) == 1 else "best_1"]


class RepeatError(FlairError):
    """The comparison after a search failed; the search did not."""


def repeat_command(
    result: SearchResult, options: schema.Config, overrides: Sequence[str], folder: Path
) -> list[str]:
    """The command that trains what `repeated` names over seeds.

    Args:
        result: What the search came to.
        options: The command's config.
        overrides: The command's overrides; those of tracking and paths are handed on.
        folder: Where the comparison goes.
    """
    files = [result.folder.absolute() / "experiment" / f"{n}.yaml" for n in repeated(result)]
    seeds = ",".join(str(options.seed + each) for each in range(options.tune.repeat_best))
    places = [each for each in overrides if each.startswith(("tracking", "paths"))]
    return [
        sys.executable, "-m", "flair2_exp", "--multirun",
        f"experiment={','.join(map(str, files))}", f"seed={seeds}", *places,
        f"sweep.name={options.sweep.name}_{REPEATS}",
        f"sweep.baseline={result.study_name}_default",
        f"hydra.sweep.dir='{folder}'",
    ]  # fmt: skip
