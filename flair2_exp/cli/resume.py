"""`flair2-exp resume=FOLDER`: a run that was interrupted, by the config that is in its folder."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flair2_exp.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from flair2_exp.config.experiment import Config
    from flair2_exp.lifecycle.folder import RunFolder
    from flair2_exp.lifecycle.record import RunRecord

_KEY: Final = "resume"
_EPOCHS: Final = "trainer.max_epochs"
_OF_THE_FOLDER: Final = (
    "hydra.mode", "hydra.run", "hydra.sweep", "hydra.launcher", "hydra/launcher", "hydra/sweeper",
    "hydra.output_subdir",
)  # fmt: skip
"""What of Hydra's own is given anew, or was of the sweep that the run belongs to."""


@dataclass(frozen=True)
class Resumed:
    """A run to take up again.

    Attributes:
        folder: The run's, absolute.
        config: What it was begun with, with more epochs where that is asked for.
        extended: Whether it is to be trained for more epochs.
    """

    folder: RunFolder
    config: Config
    extended: bool

    def hydra_overrides(self) -> Iterator[str]:
        """Yield what Hydra's own node is composed from: as at the run's start, in its folder."""
        for override in _hydras_file(self.folder).get("overrides", {}).get("hydra", []):
            if not override.lstrip("+~").startswith(_OF_THE_FOLDER):
                yield override
        quoted = str(self.folder.path).replace("\\", "\\\\").replace("'", "\\'")
        yield f"hydra.run.dir='{quoted}'"
        yield "hydra.output_subdir=null"  # what is there is of the command that began the run


def resumed(flags: argparse.Namespace) -> Resumed | None:
    """Return the run that a command resumes; None where it names none.

    Args:
        flags: The command line, as `words.parse` reads it.

    Raises:
        UsageError: It also says what else to do.
        ConfigError: There is no run in the folder that could resume, or the command changes it.
    """
    named = [each.partition("=")[2] for each in flags.overrides if each.startswith(f"{_KEY}=")]
    if not named:
        return None
    words = [each for each in flags.overrides if not each.startswith(f"{_KEY}=")]
    place = named[-1].strip("'\"")
    epochs = _epochs(flags, place, words, many=len(named) > 1)

    from flair2_exp.lifecycle.folder import RunFolder

    folder = RunFolder(Path(place).expanduser().absolute())
    record, config = _stored(folder, place)
    before = config.trainer.max_epochs
    if epochs is None or epochs == before:
        return Resumed(folder, config, extended=False)
    if epochs < before:
        raise ConfigError(
            f"{_EPOCHS}={epochs}: {place} is a run of {before} epochs, and can get more, not fewer."
        )
    if record.training and not (folder.last.exists() or folder.previous.exists()):
        raise ConfigError(f"{_EPOCHS}={epochs}: {folder.last} is gone, from which to train on.")
    config = replace(config, trainer=replace(config.trainer, max_epochs=epochs))
    return Resumed(folder, config, extended=True)


def _epochs(flags: argparse.Namespace, place: str, words: list[str], *, many: bool) -> int | None:
    """Return the epochs that a command asks for; refuse everything else beside `resume=`."""
    if many:
        raise UsageError(f"{_KEY}= names one folder: start a command for each.")
    others = [each for each in words if not each.startswith((f"{_EPOCHS}=", "hydra.mode="))]
    if flags.multirun or any(each.startswith(("sweep=", "tune=")) for each in others):
        raise UsageError(
            f"{_KEY}={place} is one run; a sweep or a search resumes by its own command, given "
            "again."
        )
    if flags.cfg or flags.info or flags.shell_completion or flags.config_dir or flags.config_path:
        raise UsageError(f"{_KEY}={place} takes no flags: the config is in the folder.")
    if others:
        raise ConfigError(
            f"{others[0]}: {_KEY}={place} takes the run's own config, of which {_EPOCHS} alone may "
            "be raised; leave the other options out."
        )
    if not words:
        return None
    text = words[-1].partition("=")[2]
    if not text.isdecimal() or not int(text):
        raise ConfigError(f"{_EPOCHS}={text}: expected a whole number, 1 at least.")
    return int(text)


def _stored(folder: RunFolder, place: str) -> tuple[RunRecord, Config]:
    """Return the record and the config in a folder.

    Raises:
        ConfigError: It holds no run, one of another kind, or one whose config is not whole.
    """
    from flair2_exp.lifecycle.record import RunRecord, read_config, read_settings
    from flair2_exp.tracking.scrub import is_scrubbed
    from flair2_exp.tracking.tags import Tag

    if not folder.path.is_dir():
        raise ConfigError(f"{_KEY}={place}: there is no such folder.")
    record = RunRecord.read(folder)
    if record is None:
        raise ConfigError(
            f"{_KEY}={place}: it holds no run (no readable {folder.record.name}).\n"
            "Name the folder of one run, as outputs/NAME/TIME or multirun/SWEEP/JOB."
        )
    if Tag.TRIAL in record.tags or Tag.MEMBERS in record.tags:
        kind = "a trial of a search" if Tag.TRIAL in record.tags else "a score without a training"
        raise ConfigError(
            f"{_KEY}={place}: it holds {kind}; give the command again that has made it."
        )
    if is_scrubbed(read_settings(folder)):
        raise ConfigError(
            f"{_KEY}={place}: its config is kept without the credentials that it was given.\n"
            "Give the first command again, with hydra.run.dir=FOLDER."
        )
    _make_importable(folder)
    return record, read_config(folder)


def _make_importable(folder: RunFolder) -> None:
    """Let a config name the classes of the project that the run was begun with."""
    from flair2_exp.projects import make_importable

    for source in _hydras_file(folder).get("runtime", {}).get("config_sources", []):
        if source["schema"] == "file" and Path(source["path"]).is_dir():
            make_importable(source["path"])


def _hydras_file(folder: RunFolder) -> dict[str, Any]:
    """Return what Hydra kept of its own node; empty where the run was begun without it."""
    import yaml

    try:
        content = yaml.safe_load((folder.hydra / "hydra.yaml").read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return dict(content.get("hydra", {})) if isinstance(content, dict) else {}
