"""A run by the config in a run's folder: the rest of that run (`resume=`), or the same again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flair2_exp.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from flair2_exp.compat import HydraApp
    from flair2_exp.config.experiment import Config
    from flair2_exp.lifecycle.folder import RunFolder
    from flair2_exp.lifecycle.record import RunRecord

_OF_THE_FOLDER: Final = (
    "hydra.mode", "hydra.run", "hydra.sweep", "hydra.launcher", "hydra/launcher", "hydra/sweeper",
    "hydra.output_subdir",
)  # fmt: skip
"""What of Hydra's own is given anew, or was of the sweep that the run belongs to."""


@dataclass(frozen=True)
class Stored:
    """What to run, and where.

    Attributes:
        source: The folder of the run whose config it is.
        config: That config; with more epochs where they are asked for.
        folder: Where it runs, absolute: that of the same run, or another; None: a new one, which is
            named as a command's is.
        extended: Whether the folder's run is to be trained for more epochs.
    """

    source: RunFolder
    config: Config
    folder: Path | None
    extended: bool = False

    def run(self, words: Sequence[str]) -> Path:
        """Run it, as a command that composes its config does; return its folder.

        Args:
            words: The overrides to keep with the MLflow run.

        Raises:
            FlairError: As of `lifecycle.experiment.run`.
        """
        from flair2_exp.cli.main import JOB_NAME, register, run_composed
        from flair2_exp.compat import opened_hydra
        from flair2_exp.config.groups import config_folder
        from flair2_exp.signals import signals_as_exceptions

        register()
        projects = [each.path for each in _sources(self.source) if each.provider == "command-line"]
        project = next((path for path in projects if Path(path).is_dir()), None)
        with signals_as_exceptions(), opened_hydra(JOB_NAME, config_folder(), project) as hydra:
            return run_composed(
                hydra.config_loader,
                self._composed(hydra),
                self.config,
                list(words),
                extended=self.extended,
            )

    def _composed(self, hydra: HydraApp) -> DictConfig:
        """Return the stored config beside Hydra's own node, which is as at the run's start."""
        from hydra.types import RunMode
        from omegaconf import OmegaConf

        from flair2_exp.compat import compose_whole
        from flair2_exp.config.fields import plain

        overrides = [*self._hydra_overrides(), "hydra.mode=RUN"]
        node = compose_whole(hydra, "config", overrides, RunMode.RUN).hydra
        stored: dict[str, Any] = {"overrides": {"task": command_of(self.source)}}
        if sources := _sources(self.source):  # by which the project is found once more
            stored["runtime"] = {"config_sources": sources}
        node = OmegaConf.merge(node, stored)
        return OmegaConf.create({**plain(self.config), "hydra": node})

    def _hydra_overrides(self) -> Iterator[str]:
        for override in _of_hydra(self.source, "overrides.hydra"):
            if not override.lstrip("+~").startswith(_OF_THE_FOLDER):
                yield override
        if self.folder is not None:
            quoted = str(self.folder).replace("\\", "\\\\").replace("'", "\\'")
            yield f"hydra.run.dir='{quoted}'"
        if self.folder == self.source.path:
            yield "hydra.output_subdir=null"  # what is there is of the command that began the run


def stored_config(folder: RunFolder, record: RunRecord) -> Config:
    """Return the config of a run, to run by it; let it name the classes of the run's project.

    Args:
        folder: The run's.
        record: The run's.

    Raises:
        FlairError: The run has trained nothing, or its config is not whole or of another version.
    """
    from flair2_exp.config.compose import make_sources_importable
    from flair2_exp.lifecycle.record import read_config, read_settings
    from flair2_exp.tracking.scrub import is_scrubbed
    from flair2_exp.tracking.tags import Tag

    if Tag.MEMBERS in record.tags:
        raise ConfigError(
            f"{folder} holds the score of an ensemble or of test-time augmentation, not a run.\n"
            f"Give its own command again: {record.tags.get(Tag.SOURCE_NAME, '')}"
        )
    if is_scrubbed(read_settings(folder)):
        raise ConfigError(
            f"{folder}: its config is kept without the credentials that it was given.\n"
            "Give the first command again, with hydra.run.dir=FOLDER."
        )
    make_sources_importable(_sources(folder))
    return read_config(folder)


def command_of(folder: RunFolder) -> list[str]:
    """Return the overrides of the command that a run was started by; empty where not kept."""
    return list(map(str, _of_hydra(folder, "overrides.task")))


def _sources(folder: RunFolder) -> list[Any]:
    """Return the folders that a run's config was composed from, as Hydra describes them."""
    return list(_of_hydra(folder, "runtime.config_sources"))


def _of_hydra(folder: RunFolder, name: str) -> Sequence[Any]:
    """Return a list of Hydra's own node, as kept with a run; empty where that was not kept."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        content = OmegaConf.load(folder.hydra / "hydra.yaml")
        return OmegaConf.select(content, f"hydra.{name}") or []
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException):
        return []
