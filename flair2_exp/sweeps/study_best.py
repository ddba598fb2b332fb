"""The best of a study as an experiment file, and trained against the default over seeds."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from flair2_exp.config.compose import typed
from flair2_exp.config.experiment import Config
from flair2_exp.config.identity import UNKNOWN_DATA, deciding
from flair2_exp.errors import FlairError
from flair2_exp.files import write_text
from flair2_exp.optuna_sweeper.config import NAME as SWEEPER
from flair2_exp.values import flatten

if TYPE_CHECKING:
    from flair2_exp.optuna_sweeper.results import SearchResult
    from flair2_exp.tracking.run import Run

log = logging.getLogger(__name__)

REPEATS: Final = "repeat_best"
"""The folder of the comparison, in the sweep's."""

# Not part of what makes a trial: the search itself, where results go, and what every run says anew.
_LEFT_OUT: Final = (
    "hydra", "tune", "sweep", "tracking", "paths", "objective", "test", "name", "quirk"
)  # fmt: skip
# Groups whose files set other nodes than their own, which the values therefore hold.
_PATCHES: Final = ("experiment", "preset", "sweep", "tune", "quirk", "tracking", "paths")


class RepeatError(FlairError):
    """The comparison after a search failed; the search did not."""


# --- experiment files ---------------------------------------------------------------------------


def write_experiments(result: SearchResult) -> list[Path]:
    """Write the best trial, or each of the Pareto front, and the default as experiment files.

    They are `experiment/best.yaml` (several objectives: `best_1.yaml`, ...; best in the first
    objective first) and, last, `experiment/default.yaml` in the sweep's folder.
    """
    folder, study = result.folder / "experiment", result.study.study_name
    for stale in folder.glob("best_[0-9]*.yaml"):  # of a front that had more trials
        stale.unlink()
    files = []
    for place, trial in enumerate(result.best, start=1):
        path = folder / f"{'best' if len(result.names) == 1 else f'best_{place}'}.yaml"
        values = ", ".join(f"{value:.6g}" for value in trial.values)
        comment = f"Trial {trial.number} of the study {study}: {', '.join(result.names)} {values}"
        name = f"{study}_trial_{trial.number}"
        files.append(write_experiment(path, name, result.space.overrides(trial.params), comment))
    path, overrides = folder / "default.yaml", list(result.space.fixed.values())
    comment = f"What the study {study} started from."
    return [*files, write_experiment(path, f"{study}_default", overrides, comment)]


def write_experiment(path: Path, name: str, overrides: Sequence[str], comment: str) -> Path:
    """Write an experiment file that composes to the config of these overrides.

    Group files come first, then every value that they do not give: presets that the overrides name
    are in the values, since a preset would win over an experiment. The comment is a line for the
    file's head; return the path.
    """
    wanted, choices = _composed(overrides)
    _, defaults = _composed([])
    changed = {
        group: option
        for group, option in choices.items()
        if option != defaults.get(group) and group not in _PATCHES and not group.startswith("hydra")
    }
    given, _ = _composed([f"{group}={option}" for group, option in changed.items()])
    content: dict[str, Any] = {}
    if changed:
        content["defaults"] = [{f"override /{group}": each} for group, each in changed.items()]
    content |= {"name": name, **_changed_values(given, wanted)}
    head = f"# @package _global_\n# flair2-exp experiment={path}\n# {comment}\n\n"
    write_text(path, head + OmegaConf.to_yaml(content))
    return path


def default_values(result: SearchResult) -> dict[str, Any]:
    """Return what the options that a study searches have where it started from."""
    config, choices = _composed(list(result.space.fixed.values()))
    flat = flatten(config)
    return {name: choices.get(name, flat.get(name)) for name in result.space.dimensions}


def _composed(overrides: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the unresolved config of overrides as plain values, and its groups' choices."""
    # With the search's sweeper, whose sampler and pruner a search of somebody's own may choose.
    searching = [f"hydra/sweeper={SWEEPER}", *overrides]
    whole = compose("config", searching, return_hydra_config=True)
    choices = {str(group): str(each) for group, each in whole.hydra.runtime.choices.items()}
    plain: Any = OmegaConf.to_container(whole, resolve=False)
    return {key: plain[key] for key in plain if key not in _LEFT_OUT}, choices


def _decides(overrides: Sequence[str]) -> dict[str, Any]:
    """Return what decides the result of the config of overrides, on the same data."""
    whole = compose("config", [f"hydra/sweeper={SWEEPER}", *overrides])
    return deciding(typed(whole), UNKNOWN_DATA)


def _changed_values(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that are not as before, nested as they stand; lists are whole values."""
    changed: dict[str, Any] = {}
    for key, value in now.items():
        if isinstance(value, Mapping) and isinstance(before.get(key), Mapping):
            inner = _changed_values(before[key], value)
            if inner:
                changed[key] = inner
        elif key not in before or before[key] != value:
            changed[key] = value
    return changed


# --- the best against the default ---------------------------------------------------------------


def repeat(result: SearchResult, config: Config, overrides: Sequence[str], parent: Run) -> None:
    """Train the best and the default over seeds, as a sweep with the leaderboard's report.

    It is a command of its own: finished runs are kept when it is given again. Overrides of tracking
    and paths are handed on, and the study's MLflow run gets the report.

    Raises:
        RepeatError: The comparison failed.
    """
    folder = (result.folder / REPEATS).absolute()
    rows = repeated(result)
    files = [str(result.folder.absolute() / "experiment" / f"{row}.yaml") for row in rows]
    seeds = [str(config.seed + each) for each in range(config.tune.repeat_best)]
    command = [
        sys.executable, "-m", "flair2_exp", *_config_dir(), "--multirun",
        f"experiment={','.join(files)}", f"seed={','.join(seeds)}",
        *(each for each in overrides if each.startswith(("tracking", "paths"))),
        f"sweep.name={config.sweep.name}_{REPEATS}",
        f"sweep.baseline={result.study.study_name}_default",
        f"hydra.sweep.dir='{folder}'",
    ]  # fmt: skip
    log.info("%s over seeds: %s", " and ".join(rows), " ".join(command[1:]))
    done = subprocess.run(command, check=False)
    for path in sorted((folder / "report").glob("*")):
        if path.is_file():
            parent.log_artifact(path, REPEATS)
    if done.returncode:
        raise RepeatError(
            f"training the best and the default again ended with status {done.returncode}; the "
            "study is complete, and the same command tries that again."
        )


def _config_dir() -> list[str]:
    """Return the flag that names the folder of the user's own configs, if the command has it."""
    search_path = GlobalHydra.instance().config_loader().get_search_path().get_path()
    own = [each.path for each in search_path if each.provider == "command-line"]
    return [part for path in own for part in ("--config-dir", path.removeprefix("file://"))]


def repeated(result: SearchResult) -> list[str]:
    """Return the experiment files to compare: the default, and the best in the first objective.

    Where the default is the best itself, as it may be after a short search, or differs in nothing
    that decides its result, it stands alone.
    """
    default = list(result.space.fixed.values())
    if _decides(result.space.overrides(result.best[0].params)) == _decides(default):
        return ["default"]
    return ["default", "best" if len(result.names) == 1 else "best_1"]
