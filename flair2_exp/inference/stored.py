"""A trained network as a run has left it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flair2_exp import __version__
from flair2_exp.config.experiment import Config
from flair2_exp.config.fields import build
from flair2_exp.errors import CheckpointError, ConfigError, FlairError
from flair2_exp.inference import weights
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import FINISHED, MEMBERS, TRAINED, RunRecord, read_settings
from flair2_exp.results.finding import locate, record_in
from flair2_exp.tracking.tags import Tag

if TYPE_CHECKING:
    from flair2_exp.training.task import SegmentationTask

log = logging.getLogger(__name__)

_LIMITS: Final = ("limit_train_batches", "limit_val_batches")


@dataclass(frozen=True)
class StoredRun:
    """A trained network and what is known of its run.

    Attributes:
        name: As the user gave it, for messages.
        checkpoint: The file of its weights.
        folder: Its run's; None where the checkpoint lies by itself.
        config: Its run's; None likewise.
        record: Its run's; None likewise.
    """

    name: str
    checkpoint: Path
    folder: RunFolder | None = None
    config: Config | None = None
    record: RunRecord | None = None

    @classmethod
    def find(cls, run: str | Path, tracking_uri: str = "") -> StoredRun:
        """Find a run's network; nothing is loaded.

        Args:
            run: The run's folder, a checkpoint, exported weights, or the id of its MLflow run.
            tracking_uri: Of the store that knows the id; empty is the local one, `mlruns`.

        Raises:
            FlairError: There is no such run, it has not trained, it was trained on a few batches
                alone, or it was written by another version.
        """
        place = locate(run, tracking_uri)
        if place.folder is not None:
            return cls._of_folder(str(run), place.folder, place.checkpoint)
        assert place.checkpoint is not None, "a place without a folder is a file's"
        return cls(str(run), place.checkpoint)

    @classmethod
    def _of_folder(cls, name: str, folder: RunFolder, path: Path | None = None) -> StoredRun:
        record = record_in(folder)
        if Tag.MEMBERS in record.tags:
            members = " ".join(read_settings(folder)[MEMBERS]["runs"])
            raise ConfigError(
                f"{folder} holds the score of an ensemble or of test-time augmentation, and not a "
                f"network.\nName what it scored: {members} (and --tta as you want it)."
            )
        config = build(Config, read_settings(folder))
        limited = [name for name in _LIMITS if getattr(config.trainer, name) is not None]
        if limited:
            raise ConfigError(
                f"{folder} is a run of a few batches (trainer.{limited[0]}="
                f"{getattr(config.trainer, limited[0])}), as preset=debug makes them: its network "
                "is not trained.\nTrain without that limit."
            )
        path = path or _tested(folder, config)
        if not path.is_file():
            raise CheckpointError(
                f"{folder} has no {path.name} ({_state(record)}).\n"
                "Finish its training first, or name another run."
            )
        if record.status not in (FINISHED, TRAINED):
            log.warning("%s: its training has not finished (%s)", folder, record.status.lower())
        return cls(name, path, folder, config, record)

    def load(self) -> tuple[SegmentationTask, Mapping[str, Any]]:
        """Return the network in its task, on the processor and in evaluation, and the checkpoint.

        Raises:
            FlairError: The checkpoint is damaged, or of another version.
        """
        from flair2_exp.models.registry import accelerate
        from flair2_exp.models.tensors import mismatch
        from flair2_exp.training.checkpoint import read_checkpoint
        from flair2_exp.training.task import SegmentationTask

        path = self.checkpoint
        content = (weights.read_weights if path.suffix == weights.SUFFIX else read_checkpoint)(path)
        options = dict(content["hyper_parameters"])
        try:
            task = SegmentationTask(**options, pretrained=False)
        except (FlairError, TypeError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"{self.checkpoint} describes a network that this version ({__version__}) does not "
                f"build: {str(error).splitlines()[0]}\nUse the version that trained it"
                f"{self._version()}."
            ) from error
        problem = mismatch(content["state_dict"], task.state_dict())
        if problem:
            raise CheckpointError(f"{self.checkpoint} does not hold its own network: {problem}.")
        task.load_state_dict(content["state_dict"])
        accelerate(task.model, task.spec.model)
        return task.eval(), content

    @property
    def is_own(self) -> bool:
        """Whether the checkpoint is the one that its run is tested with, of those beside it."""
        if self.folder is None or self.config is None:
            return False
        return _tested(self.folder, self.config).resolve() == self.checkpoint.resolve()

    def _version(self) -> str:
        version = self.record.tags.get(Tag.VERSION, "") if self.record else ""
        return f", {version}" if version else ""


def _tested(folder: RunFolder, config: Config) -> Path:
    """Return the checkpoint that a run is tested with: its best, or the one that it was given."""
    if folder.best.is_file() or config.train or not config.checkpoint:
        return folder.best
    return Path(config.checkpoint)


def _state(record: RunRecord) -> str:
    return f"its run is {record.status.lower()}{f': {record.error}' if record.error else ''}"
