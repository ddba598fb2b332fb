"""Refusing a command before Hydra makes a folder for it; nothing heavy is imported."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir

from flair2_exp import schema
from flair2_exp.errors import ConfigError


def preflight(arguments: Sequence[str]) -> None:
    """Compose and check the config of a single run; sweeps check their jobs themselves.

    Args:
        arguments: The command line without the program, as for `python -m flair2_exp`.

    Raises:
        ConfigError: A config that no experiment can run with, or a folder that cannot be written.
        HydraException: An override that does not compose.
    """
    from hydra._internal.utils import get_args_parser

    asked, _ = get_args_parser().parse_known_args(list(arguments))
    if asked.multirun or asked.hydra_help or asked.cfg or asked.info or asked.shell_completion:
        return
    if asked.config_path or asked.config_name or asked.experimental_rerun:
        return  # somebody's own config tree, which Hydra composes by itself
    overrides = list(asked.overrides)
    if asked.config_dir:
        overrides.append(f"hydra.searchpath=['file://{Path(asked.config_dir).absolute()}']")
    with initialize_config_dir(str(schema.config_folder()), version_base="1.3"):
        whole = compose("config", overrides, return_hydra_config=True)
        folder = Path(whole.hydra.run.dir)
        del whole._content["hydra"]  # type: ignore[union-attr]
        schema.typed(whole)
    require_writable(folder)


def with_implied_flags(arguments: Sequence[str]) -> list[str]:
    """The command line with what `sweep=...`, `tune=...` and `experiment=FILE` mean to Hydra.

    The first two are many runs, and a search has a sweeper of its own. Hydra 1.4 takes neither from
    a config file. An experiment may be a file outside of conf/, as a search writes it.

    Args:
        arguments: The command line without the program.

    Raises:
        ConfigError: No such experiment file, or one that Hydra would not find.
    """
    arguments = _with_experiment_files(arguments)
    groups = {argument.partition("=")[0] for argument in arguments}
    implied = []
    if groups & {"sweep", "tune"} and not groups & {"-m", "--multirun"}:
        implied += ["--multirun"]
    if "tune" in groups and "hydra/sweeper" not in groups:
        implied += ["hydra/sweeper=optuna_study"]
    return [*implied, *arguments]


def _with_experiment_files(arguments: Sequence[str]) -> list[str]:
    """`experiment=DIR/experiment/NAME.yaml` as Hydra takes it: `--config-dir DIR experiment=NAME`.

    Several files of one folder, separated by commas, are several experiments of a sweep.
    """
    named, folders = [], set()
    for argument in arguments:
        key, _, value = argument.partition("=")
        files = value.split(",")
        if key == "experiment" and any(each.endswith(".yaml") for each in files):
            for each in files:
                folders.add(_experiment_folder(each))
            argument = f"{key}={','.join(Path(each).stem for each in files)}"
        named.append(argument)
    if not folders:
        return named
    if len(folders) > 1 or "--config-dir" in named or "-cd" in named:
        raise ConfigError("experiment: the files must lie in one folder; copy them into one.")
    return ["--config-dir", str(folders.pop()), *named]


def _experiment_folder(file: str) -> Path:
    """The config folder that an experiment's file belongs to."""
    path = Path(file).expanduser().absolute()
    if not path.is_file():
        raise ConfigError(f"experiment={file}: there is no such file.")
    if path.parent.name != "experiment":
        raise ConfigError(
            f"experiment={file}: Hydra finds it only in a folder called experiment; move it to "
            f"{path.parent / 'experiment' / path.name}."
        )
    return path.parent.parent


def require_writable(folder: Path) -> None:
    """Refuse a folder that could not be made or written in; make nothing.

    Raises:
        ConfigError: It could not; the message names the part of the path that is in the way.
    """
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        reason = os.strerror(errno.ENOTDIR)
    elif not os.access(existing, os.W_OK | os.X_OK):
        reason = os.strerror(errno.EACCES)
    elif os.statvfs(existing).f_flag & os.ST_RDONLY or existing.parts[:2] == ("/", "proc"):
        reason = os.strerror(errno.EROFS)  # /proc says that it may be written, and may not
    else:
        return
    raise ConfigError(
        f"cannot write to {folder}: {existing}: {reason}.\n"
        "Choose another place with paths.root=FOLDER, or hydra.run.dir=FOLDER."
    )
