"""The config of a single run, for verbs that take overrides as a run does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from flair2_exp.cli.verbs import option

if TYPE_CHECKING:
    from flair2_exp.config.experiment import Config


def overrides_arguments(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb `OVERRIDES` and `--config-dir`, for `composed`."""
    directory = option(
        "--config-dir", metavar="FOLDER", type=click.Path(file_okay=False),
        help="With further config files, as of a project of yours.",
    )  # fmt: skip
    words = click.argument("overrides", nargs=-1, metavar="[OVERRIDES]...", shell_complete=_offered)
    return words(directory(function))


def _offered(ctx: click.Context, param: click.Parameter, begun: str) -> list[str]:
    """Return what TAB offers for an override."""
    from flair2_exp.cli.completion import overrides

    folder = ctx.params.get("config_dir")
    return list(overrides(begun, ["--config-dir", folder] if folder else []))


def composed(overrides: Sequence[str], config_dir: str | None = None) -> Config:
    """Return the checked config of a single run.

    Args:
        overrides: Hydra's, as `model=unet` and `data.bands=[nir,green,red]`.
        config_dir: A folder of further config files, as of `--config-dir`.

    Raises:
        FlairError: The overrides are refused, as those of a run are.
    """
    from hydra.types import RunMode

    from flair2_exp.cli.main import JOB_NAME, register
    from flair2_exp.cli.preflight import preflight
    from flair2_exp.cli.words import parse
    from flair2_exp.compat import compose_whole, files_checked, opened_hydra
    from flair2_exp.config.compose import as_hydra_runs, folder_of, typed
    from flair2_exp.config.groups import config_folder
    from flair2_exp.config.yaml_files import ConfigFiles
    from flair2_exp.errors import UsageError
    from flair2_exp.projects import make_importable

    folder = ["--config-dir", config_dir] if config_dir else []
    flags = parse([*folder, *overrides])
    if flags.multirun:
        raise UsageError("sweep=... and tune=... are many runs: name the options of one.")
    preflight(flags)
    register()
    if flags.config_dir:
        make_importable(flags.config_dir)
    with (
        files_checked(ConfigFiles().check),
        opened_hydra(JOB_NAME, config_folder(), flags.config_dir) as hydra,
    ):
        config = compose_whole(
            hydra, "config", [*flags.overrides, "hydra.mode=RUN"], RunMode.RUN, log_config=False
        )
        with as_hydra_runs(config, folder_of(config, "run.dir")):
            return typed(config)
