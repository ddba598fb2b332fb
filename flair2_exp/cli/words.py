"""The words of a command: Hydra's flags, checked, and those that `sweep=` and `tune=` imply.

Hydra answers a misused flag with a traceback or with its whole usage; here each costs one line.
Nothing heavy is imported.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from flair2_exp.cli.verbs import PROGRAM, SHELLS
from flair2_exp.compat import hydra_parser
from flair2_exp.config.groups import config_folder
from flair2_exp.errors import ConfigError, UsageError

_COMMANDS: Final = ("run", "multirun", "cfg", "info", "shell_completion")
"""Hydra's flags that say what to do, of which a command has one at most."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the flags and overrides of a command line, with those that it implies.

    `sweep=...` and `tune=...` are many runs, and a search has a sweeper of its own; Hydra 1.4 takes
    neither from a config file. A command that only looks (`--cfg`, `--info`) runs nothing, so that
    it shows what the jobs start from. An experiment may be a file outside of conf/, as a search
    writes it.

    Args:
        arguments: The command line without the program; flags and overrides in any order.

    Raises:
        UsageError: A flag that Hydra does not have, or flags that do not go together.
        ConfigError: No such experiment file, one that Hydra would not find, or several sweeps.
    """
    flags = _flags(arguments)
    keys = _keys(flags.overrides)
    many = [key for key in ("sweep", "tune") if key in keys]
    _require_one_search(flags.overrides, many)
    _take_experiment_files(flags)
    if many and flags.run and not is_job(flags):
        raise UsageError(f"{many[0]}=... is many runs and --run is one: omit one of them.")
    if (many or "hydra.mode=MULTIRUN" in flags.overrides) and not _commands(flags):
        flags.multirun = True
    if "tune" in many and "hydra/sweeper" not in keys:
        flags.overrides.insert(0, "hydra/sweeper=optuna_study")
    return flags


def is_job(flags: argparse.Namespace) -> bool:
    """Return whether a command is one job of a sweep or a search, as an engine starts it."""
    return bool(flags.run and {"hydra.run.dir", "hydra.job.num"} <= _keys(flags.overrides))


def runs_nothing(flags: argparse.Namespace) -> bool:
    """Return whether a command only shows something."""
    return bool(flags.hydra_help or flags.cfg or flags.info or flags.shell_completion)


def _commands(flags: argparse.Namespace) -> list[str]:
    return [f"--{name.replace('_', '-')}" for name in _COMMANDS if getattr(flags, name)]


def _flags(arguments: Sequence[str]) -> argparse.Namespace:
    """Return what Hydra's own parser makes of the words; one line where it makes nothing."""
    parser = hydra_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    flags = parser.parse_intermixed_args(list(arguments))
    commands = _commands(flags)
    if len(commands) > 1 and commands != ["--multirun", "--cfg"]:  # which shows its first job
        raise UsageError(f"{' and '.join(commands)} do not go together: keep one of them.")
    for name in ("resolve", "package"):
        if getattr(flags, name) and not flags.cfg:
            raise UsageError(f"--{name} says how a config is shown: it goes with --cfg job.")
    if flags.shell_completion and flags.overrides not in [[f"install={each}"] for each in SHELLS]:
        raise UsageError(f"--shell-completion takes install=SHELL, of {', '.join(SHELLS)}.")
    if flags.experimental_rerun:
        raise UsageError(
            "--experimental-rerun would execute whatever its pickle file holds: give the command "
            "again, with hydra.run.dir=FOLDER to resume its run."
        )
    if flags.config_dir and not Path(flags.config_dir).is_dir():
        raise UsageError(f"--config-dir={flags.config_dir}: no such folder.")
    return flags


def _refuse(message: str) -> NoReturn:
    raise UsageError(f"{message}; see `{PROGRAM} --help` and `--hydra-help`.")


def _keys(overrides: Sequence[str]) -> set[str]:
    return {override.partition("=")[0] for override in overrides}


def _require_one_search(overrides: Sequence[str], many: Sequence[str]) -> None:
    """Refuse a search over searches, or over sweeps; a sweep over sweeps `plan.split` refuses."""
    if len(many) > 1:
        raise ConfigError("sweep=... and tune=... are two commands: give one after the other.")
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "tune" and "," in value:
            raise ConfigError(f"{override}: one search at a time; start a command for each.")


def _take_experiment_files(flags: argparse.Namespace) -> None:
    """Turn `experiment=DIR/experiment/NAME.yaml` into `--config-dir DIR experiment=NAME`.

    Beside a `--config-dir` of the user's, the folder is one more of Hydra's search path.
    Several files of one folder, separated by commas, are several experiments of a sweep.
    """
    folders = set()
    for place, override in enumerate(flags.overrides):
        key, _, value = override.partition("=")
        files = value.split(",")
        if key == "experiment" and any(each.endswith(".yaml") for each in files):
            experiments = [_experiment(each) for each in files]
            folders |= {folder for folder, _ in experiments}
            flags.overrides[place] = f"{key}={','.join(name for _, name in experiments)}"
    if len(folders) > 1:
        raise ConfigError("experiment: the files must lie in one folder; copy them into one.")
    if not folders:
        return
    (folder,) = folders
    if flags.config_dir is None:
        flags.config_dir = str(folder)
    elif Path(flags.config_dir).resolve() != folder.resolve():
        # One's own networks in the one, what a search has found in the other.
        quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
        flags.overrides.append(f"hydra.searchpath=['file://{quoted}']")


def _experiment(file: str) -> tuple[Path, str]:
    """Return the config folder that an experiment's file belongs to, and its name there."""
    path = Path(file).expanduser().absolute()
    if not path.is_file():
        own = config_folder() / "experiment" / file
        hint = f" To choose it from conf/: experiment={file[:-5]}" if own.is_file() else ""
        raise ConfigError(f"experiment={file}: there is no such file.{hint}")
    for folder in path.parents:
        if folder.name == "experiment":
            return folder.parent, str(path.relative_to(folder).with_suffix(""))
    raise ConfigError(
        f"experiment={file}: Hydra finds it only in a folder called experiment; move it to "
        f"{path.parent / 'experiment' / path.name}."
    )
