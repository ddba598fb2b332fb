"""A study on one HTML page in the report's style: best parameters, trials, figures, comparison.

The page needs no network. With plotly installed (the extra `tune-figures`) its figures are
interactive; without, they are the PNG files' images.
"""

from __future__ import annotations

import base64
import json
import os
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flair2_exp.files import write_text
from flair2_exp.report import words
from flair2_exp.report.page import render
from flair2_exp.report.table import Table
from flair2_exp.report.write import DATA, PAGE
from flair2_exp.sweeps.parent import REPORT
from flair2_exp.sweeps.study_best import REPEATS, default_values, repeated
from flair2_exp.sweeps.study_figures import Drawn

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from flair2_exp.optuna_sweeper.results import SearchResult

STUDY_PAGE: Final = "study.html"
FEW_TRIALS: Final = 30
"""Below this the importance of parameters is a hint: it changes from one search to the next."""
MANY: Final = 20
"""Trials from which on their table is folded."""


def write_page(
    result: SearchResult,
    drawn: Sequence[Drawn],
    files: Sequence[Path],
    folder: Path,
    *,
    synthetic: bool,
) -> Path:
    """Write the page of a study.

    Args:
        result: The study.
        drawn: Its figures.
        files: The experiment files of the best.
        folder: For the page.
        synthetic: Whether the scores are of the synthetic sample data set.

    Returns:
        The page.
    """
    complete = [trial for trial in result.trials if trial.state.name == "COMPLETE"]
    page = folder / STUDY_PAGE
    text = render(
        "study.html.jinja",
        title=f"Study {result.study.study_name}",
        synthetic=synthetic,
        interactive=any(each.interactive for each in drawn),
        facts=_facts(result),
        best=best_table(result),
        command=f"flair2-exp experiment={shlex.quote(str(files[0]))}",
        alone=repeated(result) == ["default"],
        comparison=read_comparison(result.folder),
        report=_relative(result.folder / REPEATS / REPORT / PAGE, folder),
        figures=[_figure(each) for each in drawn],
        complete=len(complete),
        few=FEW_TRIALS if len(complete) < FEW_TRIALS else 0,
        trials=trial_table(result),
    )
    write_text(page, text)
    return page


def _relative(path: Path, start: Path) -> str:
    return Path(os.path.relpath(path, start)).as_posix() if path.is_file() else ""


@dataclass(frozen=True)
class _Figure:
    """A figure of the page."""

    title: str
    caption: str
    data: str
    """PNG, base64; empty where it is interactive."""
    interactive: str
    second: bool = False


def _figure(drawn: Drawn) -> _Figure:
    data = "" if drawn.interactive else base64.b64encode(drawn.path.read_bytes()).decode()
    names = (name for name in _CAPTIONS if drawn.title.startswith(name))
    kind = next((_CAPTIONS[name] for name in names), "")
    return _Figure(drawn.title.replace("_", " "), kind, data, drawn.interactive)


_CAPTIONS: Final[Mapping[str, str]] = {
    "pareto front": "Trials that no other beats in all objectives, and the others.",
    "history": "The objective by trial, and the best so far.",
    "importance": "Share of the objective's variance that each parameter explains (fANOVA).",
    "slice": "The objective by the values of each parameter.",
    "parallel_coordinates": "One line per trial through the values of its parameters.",
}
"""By the beginning of a figure's title."""


def _facts(result: SearchResult) -> str:
    """Return objective, direction and numbers of trials by state."""
    from flair2_exp.optuna_sweeper.results import state_name

    pairs = zip(result.names, result.study.directions, strict=True)
    aims = (f"{direction.name.lower()} {name}" for name, direction in pairs)
    states = Counter(state_name(trial) for trial in result.trials)
    counted = ", ".join(f"{number} {state}" for state, number in states.items())
    return f"Aim: {'; '.join(aims)}. {words.plural(len(result.trials), 'trial')}: {counted}."


def best_table(result: SearchResult) -> Table:
    """Return the parameters of the best trials beside the default's."""
    default = default_values(result)
    swept = list(result.space.dimensions)
    best = result.best[:MANY]
    heads = ["", *(f"trial {trial.number}" for trial in best), "default"]
    cells = [
        [name, *(f"{trial.values[at]:.6g}" for trial in best), words.NOTHING]
        for at, name in enumerate(result.names)
    ]
    cells += [
        [name, *(_text(trial.params.get(name)) for trial in best), _text(default[name])]
        for name in swept
    ]
    about = {
        "default": "what the study started from; whether the best is better than it, other seeds "
        "and the test set tell (tune.repeat_best)"
    }
    return Table("best", "", "Best parameters", heads, cells, [], about)


def trial_table(result: SearchResult) -> Table:
    """Return all trials, best first; those that are not complete last."""
    from optuna.study import StudyDirection

    from flair2_exp.optuna_sweeper.results import state_name

    sign = 1.0 if result.study.directions[0] == StudyDirection.MINIMIZE else -1.0

    def rank(trial: FrozenTrial) -> tuple[bool, float, int]:
        value = sign * trial.values[0] if trial.values else float("inf")
        return trial.state.name != "COMPLETE", value, trial.number

    names = list(dict.fromkeys(name for trial in result.trials for name in trial.params))
    heads = ["trial", "state", *result.names, "duration", *names]
    cells = []
    for trial in sorted(result.trials, key=rank):
        values = trial.values or [None] * len(result.names)
        seconds = trial.duration.total_seconds() if trial.duration else None
        cells.append([
            str(trial.number), state_name(trial),
            *(words.NOTHING if value is None else f"{value:.6g}" for value in values),
            words.duration(seconds), *(_text(trial.params.get(name)) for name in names),
        ])  # fmt: skip
    about = {"state": "pruned: ended early, since it was behind the others at the same epoch"}
    title = f"All {words.plural(len(cells), 'trial')}, best first"
    return Table("trials", "", title, heads, cells, [], about, second=len(cells) > MANY)


def _text(value: Any) -> str:
    if value is None:
        return words.NOTHING
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def read_comparison(folder: Path) -> list[str]:
    """Return what the report of `tune.repeat_best` found; nothing where there is none."""
    try:
        content = json.loads((folder / REPEATS / REPORT / DATA).read_text(encoding="utf-8"))
        return [*_scores(content["rows"]), *map(str, content["findings"])]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _scores(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for row in rows:
        seeds = words.plural(len(row["seeds"]), "seed")
        yield f"{row['row']}: test mIoU {words.number(row['miou_value'])}, {seeds}."
