"""`flair2-exp resume=FOLDER`: a run that was interrupted, by the config that is in its folder."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flair2_exp.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from flair2_exp.cli.stored import Stored
    from flair2_exp.lifecycle.folder import RunFolder
    from flair2_exp.lifecycle.record import RunRecord

KEY: Final = "resume"
"""The word by which a command names the run."""
_EPOCHS: Final = "trainer.max_epochs"
_ANOTHER_COMMAND: Final = "a sweep or a search resumes by its own command, given again."


def resumed(flags: argparse.Namespace) -> Stored | None:
    """Return the run that a command resumes; None where it names none.

    Args:
        flags: The command line, as `words.parse` reads it.

    Raises:
        UsageError: It also says what else to do.
        ConfigError: There is no run in the folder that could resume, or the command changes it.
    """
    places = [each.partition("=")[2] for each in flags.overrides if each.startswith(f"{KEY}=")]
    if not places:
        return None
    if len(places) > 1:
        raise UsageError(f"{KEY}= names one folder: start a command for each.")
    place = places[0].strip("'\"")
    epochs = _epochs(flags, place)

    from flair2_exp.cli.stored import Stored, stored_config
    from flair2_exp.lifecycle.folder import RunFolder

    folder = RunFolder(Path(place).expanduser().absolute())
    record = _record(folder, place)
    config = stored_config(folder, record)
    before = config.trainer.max_epochs
    if epochs is None or epochs == before:
        return Stored(folder, config, folder.path)
    if epochs < before:
        raise ConfigError(
            f"{_EPOCHS}={epochs}: {place} is a run of {before} epochs, and can get more, not fewer."
        )
    if record.training and not (folder.last.exists() or folder.previous.exists()):
        raise ConfigError(f"{_EPOCHS}={epochs}: {folder.last} is gone, from which to train on.")
    config = replace(config, trainer=replace(config.trainer, max_epochs=epochs))
    return Stored(folder, config, folder.path, extended=True)


def _epochs(flags: argparse.Namespace, place: str) -> int | None:
    """Return the epochs that a command asks for; refuse everything else beside `resume=`."""
    words = [each for each in flags.overrides if not each.startswith(f"{KEY}=")]
    others = [each for each in words if not each.startswith(f"{_EPOCHS}=")]
    if flags.multirun or any(each.startswith(("sweep=", "tune=")) for each in others):
        raise UsageError(f"{KEY}={place} is one run; {_ANOTHER_COMMAND}")
    if flags.cfg or flags.info or flags.shell_completion or flags.config_dir or flags.config_path:
        raise UsageError(f"{KEY}={place} takes no flags: the config is in the folder.")
    if others:
        raise ConfigError(
            f"{others[0]}: {KEY}={place} takes the run's own config, of which {_EPOCHS} alone may "
            "be raised; leave the other options out."
        )
    if not words:
        return None
    text = words[-1].partition("=")[2]
    if not text.isdecimal() or not int(text):
        raise ConfigError(f"{_EPOCHS}={text}: expected a whole number, 1 at least.")
    return int(text)


def _record(folder: RunFolder, place: str) -> RunRecord:
    """Return the record in a folder.

    Raises:
        ConfigError: It holds no run that resumes by itself.
    """
    from flair2_exp.lifecycle.folder import SWEEP_CONFIG
    from flair2_exp.lifecycle.record import RunRecord
    from flair2_exp.tracking.tags import Tag

    if not folder.path.is_dir():
        raise ConfigError(f"{KEY}={place}: there is no such folder.")
    if (folder.path / SWEEP_CONFIG).is_file():
        raise ConfigError(f"{KEY}={place} is many runs: {_ANOTHER_COMMAND}")
    record = RunRecord.read(folder)
    if record is None:
        raise ConfigError(
            f"{KEY}={place}: it holds no run (no readable {folder.record.name}).\n"
            "Name the folder of one run, as outputs/NAME/TIME or multirun/SWEEP/JOB."
        )
    if Tag.TRIAL in record.tags:
        raise ConfigError(f"{KEY}={place} is a trial: {_ANOTHER_COMMAND}")
    return record
