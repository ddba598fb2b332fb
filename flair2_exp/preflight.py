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
    if asked.config_path or asked.config_dir or asked.config_name or asked.experimental_rerun:
        return  # somebody's own config tree, which Hydra composes by itself
    with initialize_config_dir(str(schema.config_folder()), version_base="1.3"):
        whole = compose("config", list(asked.overrides), return_hydra_config=True)
        folder = Path(whole.hydra.run.dir)
        del whole._content["hydra"]
        schema.typed(whole)
    require_writable(folder)


def with_implied_flags(arguments: Sequence[str]) -> list[str]:
    """The command line with what `sweep=...` and `tune=...` mean to Hydra.

    Both are many runs, and a search has a sweeper of its own. Hydra 1.4 takes neither from a
    config file.

    Args:
        arguments: The command line without the program.
    """
    groups = {argument.partition("=")[0] for argument in arguments}
    implied = []
    if groups & {"sweep", "tune"} and not groups & {"-m", "--multirun"}:
        implied += ["--multirun"]
    if "tune" in groups and "hydra/sweeper" not in groups:
        implied += ["hydra/sweeper=optuna_study"]
    return [*implied, *arguments]


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
