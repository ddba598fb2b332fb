"""The config of a command that trains nothing, from overrides as for an experiment."""

from __future__ import annotations

from collections.abc import Sequence

from flair2_exp.config.experiment import Config


def composed(overrides: Sequence[str]) -> Config:
    """Return the checked config that overrides describe; `--config-dir` may stand among them.

    Raises:
        FlairError: A value or a combination is wrong.
    """
    from hydra.types import RunMode

    from flair2_exp.cli.main import JOB_NAME, register
    from flair2_exp.cli.words import parse
    from flair2_exp.compat import opened_hydra
    from flair2_exp.config.compose import typed
    from flair2_exp.config.groups import config_folder

    register()
    flags = parse([*overrides])
    with opened_hydra(JOB_NAME, config_folder(), flags.config_dir) as hydra:
        return typed(hydra.compose_config("config", flags.overrides, RunMode.RUN))
