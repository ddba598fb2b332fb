"""The words of a command: Hydra's flags, checked, and those that `sweep=` and `tune=` imply.

Hydra answers a misused flag with a traceback or with its whole usage; here each costs one line.
Nothing heavy is imported.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from flair2_exp.config import schema
from flair2_exp.errors import ConfigError, UsageError

_COMMANDS: Final = ("run", "multirun", "cfg", "info", "shell_completion")
"""Hydra's flags that say what to do, of which a command has one at most."""

_SHELLS: Final = ("bash", "fish", "zsh")


def understood(arguments: Sequence[str]) -> argparse.Namespace:
    """The flags and overrides of a command line, with those that it implies.

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
    asked = _parsed(arguments)
    keys = _keys(asked.overrides)
    many = [key for key in ("sweep", "tune") if key in keys]
    _require_one_search(asked.overrides, many)
    _take_experiment_files(asked)
    if many and asked.run:
        raise UsageError(f"{many[0]}=... is many runs and --run is one: leave one of them out.")
    if many and not any(getattr(asked, name) for name in _COMMANDS):
        asked.multirun = True
    if "tune" in many and "hydra/sweeper" not in keys:
        asked.overrides.insert(0, "hydra/sweeper=optuna_study")
    return asked


def words(asked: argparse.Namespace) -> list[str]:
    """The command line that Hydra's parser reads as `asked`."""
    flags = []
    for name, value in vars(asked).items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            flags.append(flag)
        elif value and name != "overrides":
            flags.append(f"{flag}={value}")
    return [*flags, *asked.overrides]


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """What Hydra's own parser makes of it, refused in a line where it makes nothing."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    asked = parser.parse_intermixed_args(list(arguments))
    commands = [f"--{name.replace('_', '-')}" for name in _COMMANDS if getattr(asked, name)]
    if len(commands) > 1:
        raise UsageError(f"{' and '.join(commands)} do not go together: leave all but one out.")
    for name in ("resolve", "package"):
        if getattr(asked, name) and not asked.cfg:
            raise UsageError(f"--{name} says how a config is shown: it goes with --cfg job.")
    known = [f"{verb}={shell}" for verb in ("install", "uninstall", "query") for shell in _SHELLS]
    if asked.shell_completion and (len(asked.overrides) != 1 or asked.overrides[0] not in known):
        raise UsageError(f"--shell-completion takes install=SHELL, of {', '.join(_SHELLS)}.")
    if asked.experimental_rerun and not Path(asked.experimental_rerun).is_file():
        raise UsageError(f"--experimental-rerun={asked.experimental_rerun}: no such file.")
    if asked.config_dir and not Path(asked.config_dir).is_dir():
        raise UsageError(f"--config-dir={asked.config_dir}: no such folder.")
    return asked


def _refuse(message: str) -> NoReturn:
    raise UsageError(f"{message}; see `python -m flair2_exp --help` and `--hydra-help`.")


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


def _take_experiment_files(asked: argparse.Namespace) -> None:
    """`experiment=DIR/experiment/NAME.yaml` as Hydra takes it: `--config-dir DIR experiment=NAME`.

    Several files of one folder, separated by commas, are several experiments of a sweep.
    """
    folders = set()
    for place, override in enumerate(asked.overrides):
        key, _, value = override.partition("=")
        files = value.split(",")
        if key == "experiment" and any(each.endswith(".yaml") for each in files):
            found = [_experiment(each) for each in files]
            folders |= {folder for folder, _ in found}
            asked.overrides[place] = f"{key}={','.join(name for _, name in found)}"
    if len(folders) > 1 or (folders and asked.config_dir):
        raise ConfigError("experiment: the files must lie in one folder; copy them into one.")
    if folders:
        asked.config_dir = str(folders.pop())


def _experiment(file: str) -> tuple[Path, str]:
    """The config folder that an experiment's file belongs to, and its name there."""
    path = Path(file).expanduser().absolute()
    if not path.is_file():
        own = schema.config_folder() / "experiment" / file
        hint = f" To choose it from conf/: experiment={file[:-5]}" if own.is_file() else ""
        raise ConfigError(f"experiment={file}: there is no such file.{hint}")
    for folder in path.parents:
        if folder.name == "experiment":
            return folder.parent, str(path.relative_to(folder).with_suffix(""))
    raise ConfigError(
        f"experiment={file}: Hydra finds it only in a folder called experiment; move it to "
        f"{path.parent / 'experiment' / path.name}."
    )
