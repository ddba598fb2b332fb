"""Two runs beside each other: what differs in their configs, and by how much in their scores.

The intervals are those of a report with these two runs alone: over domains or areas of the test
set, drawn for both at once. With one seed each they say nothing about what other seeds would give.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flair2_exp.config.identity import decides
from flair2_exp.errors import ConfigError, DataError
from flair2_exp.files import write_bytes
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import read_settings
from flair2_exp.report.folders import read_folder
from flair2_exp.report.leaderboard import build_report
from flair2_exp.report.results import Difference, Report, ReportOptions, Score
from flair2_exp.report.runs import AbsentRun, RunSet, ScoredRun
from flair2_exp.tracking.tags import Tag
from flair2_exp.values import differences, flatten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PLACES: Final = ("paths.", "sweep.", "tracking.", "name")
"""Options that say where results go and how they are called."""


@dataclass(frozen=True)
class Comparison:
    """Two runs that were tested on the same patches.

    Attributes:
        one: The first run.
        other: The second one.
        options: Options of which they have different values, by name: first what decides results.
        report: Of the two, each a row of its own name.
    """

    one: ScoredRun
    other: ScoredRun
    options: Mapping[str, tuple[Any, Any]]
    report: Report

    @property
    def difference(self) -> Difference:
        """The other run's scores minus those of the first."""
        return self.report.differences[0]

    @property
    def scores(self) -> Sequence[tuple[str, Score, Score, Score]]:
        """By line (mIoU, then the scored classes): name, both scores, and their difference."""
        first, second = self.report.rows
        lines = [("mIoU", first.miou, second.miou, self.difference.miou)]
        classes = (first.classes, second.classes, self.difference.classes)
        return [*lines, *zip(self.report.scored, *classes, strict=True)]


def scored_run(folder: RunFolder) -> ScoredRun:
    """Return a run with what it counted.

    Raises:
        FlairError: It has no score.
    """
    run = read_folder(folder)
    if isinstance(run, AbsentRun):
        raise DataError(f"{folder} has no score to compare ({run.state}): {run.reason}")
    return run


def report_of(run: ScoredRun, options: ReportOptions) -> Report:
    """Return the report of a single run: its scores with their intervals."""
    return build_report(RunSet((run,)), options)


def compare(one: RunFolder, other: RunFolder, options: ReportOptions) -> Comparison:
    """Compare two runs.

    Args:
        one: The first run's folder.
        other: The second one's.
        options: Unit, resamples and seed of the bootstrap.

    Raises:
        FlairError: One of them has no score, they are one run, or their scores are not comparable:
            other data, split, classes, metric or test patches.
    """
    if one.path.resolve() == other.path.resolve():
        raise ConfigError(f"{one} and {other} are one run: name two.")
    first, second = map(scored_run, (one, other))
    names = _names(first, second)
    rows = [_as_row(run, name) for run, name in zip((first, second), names, strict=True)]
    chosen = dataclasses.replace(options, baseline=names[0], factors=None, strict=True)
    report = build_report(RunSet(tuple(rows)), chosen)
    return Comparison(first, second, option_differences(one, other), report)


def option_differences(one: RunFolder, other: RunFolder) -> dict[str, tuple[Any, Any]]:
    """Return the options of which two runs have different values: those that decide results first.

    Raises:
        DataError: The config of one of them cannot be read.
    """
    changes = differences(*(flatten(read_settings(each)) for each in (one, other)))
    kept = [name for name in changes if not name.startswith(_PLACES)]
    return {name: changes[name] for name in sorted(kept, key=lambda name: not decides(name))}


def curves_figure(comparison: Comparison) -> Figure | None:
    """Draw the learning curves of both runs in one panel; None where there are none."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from flair2_exp.report.figures import COLOURS, WIDTH, style
    from flair2_exp.report.runs import CURVES

    runs = dict(zip((row.name for row in comparison.report.rows), _pair(comparison), strict=True))
    name = next((n for n in CURVES if any(n in run.curves for run in runs.values())), None)
    if name is None:
        return None
    with style():
        figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
        axes = figure.subplots()
        for (label, run), colour in zip(runs.items(), COLOURS, strict=False):
            if name in run.curves:
                epochs, values = zip(*run.curves[name], strict=True)
                axes.plot(epochs, values, color=colour, marker="o", ms=2.5, lw=1.4, label=label)
        axes.set_xlabel("epoch")
        axes.set_ylabel(name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color="#e5e5e5", lw=0.6)
        axes.legend(frameon=False)
    return figure


def save_curves(comparison: Comparison, folder: Path) -> Path | None:
    """Write the learning curves to `curves.png` in a folder; None where there are none.

    Raises:
        DataError: The folder cannot be written.
    """
    from flair2_exp.report.write import image

    figure = curves_figure(comparison)
    if figure is None:
        return None
    try:
        write_bytes(folder / "curves.png", image(figure, "png"))
    except OSError as error:
        raise DataError(
            f"the figure cannot be written to {folder} ({error.strerror}).\nName another folder."
        ) from None
    return folder / "curves.png"


def _pair(comparison: Comparison) -> tuple[ScoredRun, ScoredRun]:
    return comparison.one, comparison.other


def _names(one: ScoredRun, other: ScoredRun) -> tuple[str, str]:
    """Return what the two are called, by as little as tells them apart."""
    for of in (
        lambda run: run.record.row,
        lambda run: f"{run.record.row} seed {run.seed}",
        lambda run: f"{run.record.row} seed {run.seed} ({Path(run.source).name})",
    ):
        names = (of(one), of(other))
        if names[0] != names[1]:
            return names
    return f"{names[0]} 1", f"{names[1]} 2"


def _as_row(run: ScoredRun, name: str) -> ScoredRun:
    """Return a run as the only one of a row."""
    record = dataclasses.replace(run.record, tags={**run.record.tags, str(Tag.ROW): name})
    return dataclasses.replace(run, record=record)
