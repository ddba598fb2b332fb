"""Before the first job: compose and check every job that a command line asks for.

An error in job 37 is shown before job 0 starts, and a refused command leaves no folder behind.
Nothing heavy is imported.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode

from flair2_exp import schema
from flair2_exp.errors import ConfigError

_BASIC_SWEEPER: Final = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


@dataclass(frozen=True)
class Job:
    """One job of a command: its overrides and its checked config."""

    overrides: tuple[str, ...]
    config: schema.Config


def preflight(arguments: Sequence[str]) -> list[Job]:
    """Compose and check every job of a command line before Hydra makes a folder.

    Args:
        arguments: The command line without the program, as for `python -m flair2_exp`.

    Returns:
        The jobs; empty where the command only asks for help or prints a config.

    Raises:
        ConfigError: A config that no experiment can run with, or a folder that cannot be written.
        HydraException: An override that does not compose.
    """
    from hydra._internal.utils import get_args_parser

    asked, _ = get_args_parser().parse_known_args(list(arguments))
    if asked.help or asked.hydra_help or asked.cfg or asked.info or asked.shell_completion:
        return []
    if asked.config_path or asked.config_dir or asked.config_name or asked.experimental_rerun:
        return []  # somebody's own config tree, which Hydra composes by itself
    with initialize_config_dir(str(schema.config_folder()), version_base="1.3"):
        overrides = OverridesParser.create().parse_overrides(asked.overrides)
        fixed = [each.input_line or "" for each in overrides if not each.is_sweep_override()]
        hydra_config = compose("config", fixed, return_hydra_config=True).hydra
        multirun = asked.multirun or hydra_config.mode == RunMode.MULTIRUN
        if not multirun:
            jobs = [tuple(asked.overrides)]  # a sweep without --multirun is refused by Hydra here
        elif hydra_config.sweeper._target_ == _BASIC_SWEEPER:
            jobs = _split(overrides, hydra_config.sweeper.params or {})
        else:
            jobs = []  # what a searching sweeper will try is not known yet
        checked = [Job(job, schema.typed(compose("config", list(job)))) for job in jobs]
        folder = hydra_config.sweep.dir if multirun else hydra_config.run.dir
    require_writable(Path(folder))
    return checked


def _split(overrides: Sequence[Override], params: Mapping[str, str]) -> list[tuple[str, ...]]:
    """The jobs that Hydra's basic sweeper makes of these overrides, in its order."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    lines = [f"{key}={value}" for key, value in params.items()]
    own = [each for each in overrides if not each.get_key_element().startswith("hydra")]
    merged = OverridesParser.create().parse_overrides(
        [*lines, *(each.input_line or "" for each in own)]
    )
    (batch,) = BasicSweeper.split_arguments(merged, max_batch_size=None)
    return [tuple(job) for job in batch]


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
    elif os.statvfs(existing).f_flag & os.ST_RDONLY or str(existing).startswith("/proc"):
        reason = os.strerror(errno.EROFS)
    else:
        return
    raise ConfigError(
        f"cannot write to {folder}: {existing}: {reason}. "
        "Choose another place with paths.root=FOLDER, or hydra.run.dir=FOLDER."
    )
