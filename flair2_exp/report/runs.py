"""What a report is made of: finished runs with what they counted, and those without a score."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flair2_exp.lifecycle.record import RunRecord
from flair2_exp.score import Convention, convention_of
from flair2_exp.tracking.tags import Tag

if TYPE_CHECKING:
    from flair2_exp.report.counts import Counts

Curve = Sequence[tuple[float, float]]
"""Epochs, counted from 1, and values of a metric."""

CURVES: Final = ("val/miou", "val/loss")
"""Metrics whose course over the epochs a report draws: the first that any of its runs measured."""


@dataclass(frozen=True)
class ScoredRun:
    """A finished run."""

    record: RunRecord
    counts: Counts
    settings: Mapping[str, str] = field(default_factory=dict)
    """The whole config, flat, values as text."""
    curves: Mapping[str, Curve] = field(default_factory=dict)
    """The course of those of `CURVES` that were measured and read."""
    source: str = ""
    """Folder or MLflow run, for messages."""
    folder: Path | None = None
    """Where its folder is, or was; None where not recorded."""
    apart: str = ""
    """What tells it from other runs of its row's name, as `model.name=utt`; empty where the name
    is enough."""

    @property
    def row(self) -> str:
        """The leaderboard row that it belongs to."""
        return f"{self.record.row} ({self.apart})" if self.apart else self.record.row

    @property
    def seed(self) -> int:
        """Its seed."""
        return self.record.seed

    @property
    def convention(self) -> Convention | None:
        """What its score means by mIoU; None where not recorded."""
        metric = self.settings.get("metric.other_pixels") or self.tag(Tag.METRIC).rpartition(" ")[2]
        return convention_of(metric) if metric in ("keep", "drop") else None

    @property
    def best_epoch(self) -> int | None:
        """The epoch whose checkpoint was tested, counted from 1; None where not recorded."""
        best = self.record.scores.get("best/epoch")
        return None if best is None else int(best)

    @property
    def epochs(self) -> int | None:
        """How many epochs it trained; None where not recorded."""
        epochs = self.record.scores.get("train/epochs")
        return None if epochs is None else int(epochs)

    def tag(self, name: str) -> str:
        """Return the value of a tag; empty where it was not recorded."""
        return self.record.tags.get(name, "")


@dataclass(frozen=True)
class AbsentRun:
    """A run that a row should have and that has no score; it may have left no record at all."""

    row: str
    seed: int
    """-1 where it is not known."""
    state: str
    """`failed`, `missing`, `running`, `killed`, `unfinished`, `damaged`, ..."""
    reason: str = ""

    @classmethod
    def of(cls, record: RunRecord, source: str) -> AbsentRun:
        """Return what a run that did not finish says of itself."""
        return cls(record.row, record.seed, record.status.lower(), record.error or source)


@dataclass(frozen=True)
class RunSet:
    """The runs of a report, in the order in which they were read."""

    runs: tuple[ScoredRun, ...]
    absent: tuple[AbsentRun, ...] = ()

    @classmethod
    def of(cls, runs: Iterable[ScoredRun | AbsentRun]) -> RunSet:
        """Return scored and absent runs as a set."""
        every = list(runs)
        return cls(
            tuple(run for run in every if isinstance(run, ScoredRun)),
            tuple(run for run in every if isinstance(run, AbsentRun)),
        )
