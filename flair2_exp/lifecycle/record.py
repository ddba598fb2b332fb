"""A run's record: who it is, how far it came, what it scored. The only one of its kind.

`run.json` lies in the folder of every run. By it the same command, given again, knows whether the
run is done, resumes from its checkpoint, or would mix two different experiments in one folder. A
sweep, a search and a report read the same record; an MLflow run holds its tags.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from flair2_exp.config.experiment import Config
from flair2_exp.config.fields import build, plain
from flair2_exp.config.identity import deciding
from flair2_exp.errors import ConfigError, DataError
from flair2_exp.files import write_text
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.signals import FAILED, FINISHED, KILLED, PREEMPTED
from flair2_exp.tracking.pending import Pending
from flair2_exp.tracking.tags import Tag
from flair2_exp.values import differences, digest, flatten, shown

__all__ = [
    "ENDED", "FAILED", "FINISHED", "KILLED", "PREEMPTED", "RUNNING", "TRAINED", "RunRecord",
]  # fmt: skip

RUNNING, TRAINED = "RUNNING", "TRAINED"
ENDED: Final = (FINISHED, FAILED, KILLED)

DECIDING: Final = "config/deciding.json"
"""The artifact of an MLflow run with its record's `deciding`."""

CONFIG: Final = "config/config.yaml"
"""The artifact of an MLflow run with its whole config."""

MEMBERS: Final = "ensemble"
"""The node of `config.yaml` that names the networks whose predictions a run scores (`Tag.MEMBERS`);
not an option of the config."""

FORMAT: Final = 3
"""Raised when `run.json` changes its form, or `deciding` its rules; other forms are refused."""

_YAML: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The same values either way; libyaml's parser, where PyYAML was built with it, takes a tenth of
the time."""


@dataclass
class RunRecord:
    """What is known of a run.

    Attributes:
        tags: What tables of runs group and compare by (`Tag`), as the MLflow run has it.
        deciding: What decides its result (`config.identity.deciding`), by dotted name; empty where
            not recorded.
        place: What leads to its data: the options of `dataset` and the split's file, by dotted
            name.
        status: RUNNING, TRAINED (training is complete, testing is not), FINISHED, FAILED, KILLED,
            PREEMPTED (its cluster has ended it, and starts it again). A run whose process died
            without a word stays RUNNING or TRAINED.
        run_id: Of its MLflow run; empty with `tracking=off`.
        training: What training measured, once it is complete.
        scores: All that the run measured, once it has ended; `metrics.json` holds them.
        error: The message it failed with.
        pruned: Whether a search ended the training early.
        store: The address of the store of its MLflow run, without credentials.
        start: When it began, in milliseconds since 1970; 0 where not recorded.
        end: When it ended, likewise.
        resumed: When the newest process at work in it began, likewise: `start` where it is the
            first.
        resumed_epochs: Epochs that were trained before that process.
    """

    tags: dict[str, str]
    deciding: dict[str, Any] = field(default_factory=dict)
    place: dict[str, Any] = field(default_factory=dict)
    status: str = RUNNING
    run_id: str = ""
    training: dict[str, float] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    error: str = ""
    pruned: bool = False
    store: str = ""
    start: int = 0
    end: int = 0
    resumed: int = 0
    resumed_epochs: int = 0

    @classmethod
    def of(
        cls, config: Config, fingerprint: str, folder: RunFolder, test_fingerprint: str = ""
    ) -> RunRecord:
        """Return the record of a run that begins.

        Args:
            config: The experiment's.
            fingerprint: Of its data.
            folder: Where it runs.
            test_fingerprint: Of its test part alone; empty where that is not known.
        """
        decides = deciding(config, fingerprint)
        tags = {
            Tag.ROW: row_of(config),
            Tag.SEED: str(config.seed),
            Tag.IDENTITY: digest(decides),
            Tag.DATASET: config.dataset.name,
            Tag.FINGERPRINT: fingerprint,
            Tag.TEST_FINGERPRINT: test_fingerprint,
            Tag.SPLIT: config.split.name,
            Tag.METRIC: config.metric_setting,
            Tag.MODEL: config.model.name,
            Tag.READS: ",".join(sorted(config.reads)),
            Tag.COMPAT: config.compat,
            Tag.FOLDER: str(folder.path.absolute()),
        }
        return cls({str(name): value for name, value in tags.items()}, decides, place_of(config))

    def finish(self, status: str, error: str = "") -> None:
        """Note how the run has ended, and that it has ended now."""
        self.status, self.error, self.end = status, error, int(time.time() * 1000)

    @property
    def identity(self) -> str:
        """16 hexadecimal digits over all that decides the result; empty where not recorded."""
        return self.tags.get(Tag.IDENTITY, "")

    @property
    def fingerprint(self) -> str:
        """Of the data that it was trained and scored on; empty where not recorded."""
        return self.tags.get(Tag.FINGERPRINT, "")

    @property
    def row(self) -> str:
        """The leaderboard row that it belongs to."""
        return self.tags.get(Tag.ROW, "")

    @property
    def seed(self) -> int:
        """Its seed; -1 where not recorded."""
        text = self.tags.get(Tag.SEED, "")
        return int(text) if text.isdecimal() else -1

    @classmethod
    def read(cls, folder: RunFolder) -> RunRecord | None:
        """Return the record that a folder holds; None where there is none, or a torn one.

        Raises:
            ConfigError: It was written by another version of this package.
        """
        try:
            values = json.loads(folder.record.read_text(encoding="utf-8"))
            form = values.pop("format", 1)
        except (OSError, ValueError, AttributeError):
            return None
        if form != FORMAT:
            raise ConfigError(
                f"{folder.record} has format {form}, this version reads {FORMAT}: choose another "
                "folder (sweep.name=NAME, hydra.run.dir=FOLDER), or remove that one."
            )
        try:
            return cls(**values, scores=read_metrics(folder))
        except (TypeError, DataError):
            return None

    def write(self, folder: RunFolder) -> None:
        """Write it, in one step; the folder is made where it is missing."""
        values = {"format": FORMAT, **asdict(self)}
        del values["scores"]  # which have a file of their own
        write_text(folder.record, json.dumps(values, indent=2, default=str) + "\n")

    def is_done(self, *, test: bool) -> bool:
        """Return whether nothing is left to do: a run may be trained now and tested later."""
        if self.status != FINISHED or not self.scores:
            return False
        return self.pruned or not test or "test/miou" in self.scores

    def extend(self, config: Config, folder: RunFolder) -> None:
        """Let the run be trained for more epochs: it is of `config` from here on, and not complete.

        Args:
            config: The run's own, with a larger `trainer.max_epochs`.
            folder: Whose record this is.

        Raises:
            ConfigError: Something else that decides the result has changed, too.
        """
        epochs = "trainer.max_epochs"
        decides = deciding(config, self.fingerprint)
        self.deciding = {**self.deciding, epochs: decides.get(epochs)}
        self.require_same(config, self.fingerprint, folder)
        self.deciding = decides
        self.tags = {**self.tags, str(Tag.IDENTITY): digest(decides)}
        self.training, self.scores, self.status, self.pruned = {}, {}, RUNNING, False

    def require_same(self, config: Config, fingerprint: str, folder: RunFolder) -> None:
        """Refuse to resume in this folder with another experiment, or with other data.

        Args:
            config: The experiment's.
            fingerprint: Of its data; empty where it cannot be known here (the files lie on other
                machines, or a sample is not made yet). Then what leads to the data must be equal.
            folder: Whose record this is.

        Raises:
            ConfigError: What decides the result has changed; the message says how.
        """
        changes = differences(self.deciding, deciding(config, fingerprint or self.fingerprint))
        if not fingerprint:
            changes |= differences(self.place, place_of(config))
        if not changes:
            return
        if set(changes) <= {"fingerprint", *self.place}:
            before, now = str(self.place.get("dataset.root")), str(config.dataset.root)
            reason = f"fingerprint {fingerprint[:12]}" if fingerprint else ""
            if before == now and not reason:
                reason = shown(changes)
            raise ConfigError(
                f"{folder} holds a run of other data: {self.tags.get(Tag.DATASET)} in {before} "
                f"(fingerprint {self.fingerprint[:12]}), not {config.dataset.name} in {now}"
                f"{f' ({reason})' if reason else ''}.\nChoose another sweep with sweep.name=NAME, "
                "or another folder with hydra.run.dir=FOLDER."
            )
        if all(name.startswith("code.") and None not in each for name, each in changes.items()):
            packages = ", ".join(name.removeprefix("code.") for name in changes)
            raise ConfigError(
                f"{folder} holds a run of other code: {packages} has changed since.\n"
                "Set it back, choose another folder or sweep.name, or remove that folder."
            )
        # What one of the two alone reads follows from what they have in common.
        changes = dict(sorted(changes.items(), key=lambda each: None in each[1]))
        raise ConfigError(
            f"{folder} holds a run of another experiment: {shown(changes)}.\n"
            "Set it back, choose another folder or sweep.name, or remove that folder."
        )


def recorded_status(run_id: str, tags: Mapping[str, str]) -> str:
    """Return how an MLflow run ended, by the folder that its tags name.

    Args:
        run_id: Of the MLflow run.
        tags: Its tags.

    Returns:
        FINISHED, FAILED or KILLED; empty where the folder is gone, is another run's by now, or does
        not say.
    """
    folder = RunFolder(Path(tags.get(Tag.FOLDER, "") or "/dev/null"))
    with suppress(ConfigError):
        record = RunRecord.read(folder)
        if record is not None and record.run_id == run_id and record.status in ENDED:
            return record.status
    waiting = Pending(folder.unsent)
    if waiting.target.get("run_id") != run_id:
        return ""
    ends = [record["status"] for _, record in waiting.records() if record["kind"] == "status"]
    return str(ends[-1]) if ends else ""


def place_of(config: Config) -> dict[str, Any]:
    """Return what leads to an experiment's data, by dotted name."""
    dataset = {**plain(config.dataset), "on_damaged": None, "check": None}
    leads = {"dataset": dataset, "split": {"file": config.split.file}}
    return {name: value for name, value in flatten(leads).items() if value is not None}


def row_of(config: Config) -> str:
    """Return the leaderboard row that an experiment belongs to."""
    return config.tracking.tags.get(Tag.ROW, config.name)


def read_settings(folder: RunFolder) -> dict[str, Any]:
    """Return the whole config that a run was given, by group.

    Raises:
        DataError: There is none, or it is damaged.
    """
    return read_yaml(folder.config)


def read_config(folder: RunFolder) -> Config:
    """Return a run's config as its folder holds it.

    Raises:
        DataError: There is none, or it is damaged.
        ConfigError: It is not one of this version.
    """
    return build(Config, {n: each for n, each in read_settings(folder).items() if n != MEMBERS})


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the whole config that a file holds, by group.

    Raises:
        DataError: There is none, or it is damaged.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _YAML)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read ({error}).") from None
    if not isinstance(values, dict):
        raise DataError(f"{path} does not hold a config.")
    return values


def read_metrics(folder: RunFolder) -> dict[str, float]:
    """Return the numbers in `metrics.json`; empty where there is none.

    Raises:
        DataError: It is damaged.
    """
    try:
        content = json.loads(folder.metrics.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{folder.metrics} cannot be read ({error}).") from None
    if not isinstance(content, Mapping):
        raise DataError(f"{folder.metrics} holds no numbers by name.")
    return {
        str(name): float(value)
        for name, value in content.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
