"""Refusing a command before Hydra makes a folder for it; nothing heavy is imported."""

from __future__ import annotations

import argparse
import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra import compose

from flair2_exp.config import schema
from flair2_exp.errors import ConfigError


def preflight(asked: argparse.Namespace) -> None:
    """Compose and check the config of a single run; sweeps check their jobs themselves.

    Args:
        asked: The command line, as `command_line.understood` reads it.

    Raises:
        ConfigError: A config that no experiment can run with, or a folder that cannot be written.
        HydraException: An override that does not compose.
    """
    for override in asked.overrides:
        if override.startswith(("hydra.launcher=", "hydra.sweeper=")):
            fix = override.replace(".", "/", 1)
            raise ConfigError(f"{override}: a group's option is chosen with a slash: {fix}")
    if asked.hydra_help or asked.cfg or asked.info or asked.shell_completion:
        return
    searched = any(override.startswith("tune=") for override in asked.overrides)
    if searched and any(override.startswith("sweep.dry_run=") for override in asked.overrides):
        raise ConfigError(
            "sweep.dry_run: a search finds its trials as it goes. Its space is shown by "
            "`--cfg all --package hydra.sweeper --resolve`."
        )
    _require_own_sweeper(asked.overrides, searched=searched)
    if asked.multirun or "hydra.mode=MULTIRUN" in asked.overrides:
        return
    if asked.config_path or asked.config_name or asked.experimental_rerun:
        return  # somebody's own config tree, which Hydra composes by itself
    for override in asked.overrides:
        # Above all sweep.dry_run=true, which must not train.
        if override.startswith("sweep."):
            raise ConfigError(f"{override}: this is a single run; add sweep=NAME, or --multirun.")
        if override.startswith("tune."):
            raise ConfigError(f"{override}: this is a single run; add tune=NAME.")
    _, folder = composed(asked)
    require_writable(folder)


def _require_own_sweeper(overrides: Sequence[str], *, searched: bool) -> None:
    """Refuse a sweeper that would not read the command's options, and so ignore a dry run."""
    chosen = [each.partition("=")[2] for each in overrides if each.startswith("hydra/sweeper=")]
    own = "optuna_study" if searched else "ablation"
    options = [each for each in overrides if each.startswith("tune=" if searched else "sweep")]
    if options and chosen and chosen[-1] != own:
        raise ConfigError(
            f"{options[0]} is for hydra/sweeper={own}, not for {chosen[-1]}: leave one of them out."
        )


def composed(asked: argparse.Namespace) -> tuple[schema.Config, Path]:
    """The checked config of a single run, and the folder that Hydra would make for it.

    Args:
        asked: The command line, as `command_line.understood` reads it.

    Raises:
        ConfigError: A config that no experiment can run with.
        HydraException: An override that does not compose.
    """
    with _initialized(asked.config_dir):
        whole = compose("config", list(asked.overrides), return_hydra_config=True)
        job = whole.copy()
        del job._content["hydra"]  # type: ignore[union-attr]
        # First the job: what is wrong with it is told better than by the folder's interpolations.
        return schema.typed(job), Path(whole.hydra.run.dir)


@contextmanager
def _initialized(config_dir: str | None) -> Iterator[None]:
    """Hydra as its entry point makes it: with the folder of `--config-dir` in the search path."""
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.config_search_path import SearchPathQuery
    from hydra.core.global_hydra import GlobalHydra

    search_path = create_config_search_path(str(schema.config_folder()))
    if config_dir:
        url = f"file://{Path(config_dir).absolute()}"
        search_path.prepend("command-line", url, SearchPathQuery(provider="schema"))
    try:
        Hydra.create_main_hydra2("flair2_exp", search_path)
        yield
    finally:
        GlobalHydra.instance().clear()


def require_writable(folder: Path) -> None:
    """Refuse a folder that could not be made or written in; make nothing.

    Raises:
        ConfigError: It could not; the message names the part of the path that is in the way.
    """
    if "~" in folder.parts:
        meant = Path(*folder.parts[folder.parts.index("~") :]).expanduser()
        raise ConfigError(f"{folder}: ~ is not expanded here; write {meant}.")
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
