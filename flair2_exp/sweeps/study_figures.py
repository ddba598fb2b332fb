"""Optuna's figures of a study: PNG files, and with plotly (`tune-figures`) interactive ones."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import optuna
    from matplotlib.figure import Figure
    from optuna.trial import FrozenTrial

    from flair2_exp.optuna_sweeper.results import SearchResult

log = logging.getLogger(__name__)

_DOTS_PER_INCH: Final = 110
_INCHES_PER_PARAMETER: Final = {"plot_parallel_coordinate": 1.6, "plot_slice": 2.6}
_EACH_OBJECTIVE: Final = {
    "history": "plot_optimization_history",
    "importance": "plot_param_importances",
    "slice": "plot_slice",
    "parallel_coordinates": "plot_parallel_coordinate",
}


@dataclass(frozen=True)
class Drawn:
    """A figure of a study."""

    title: str
    path: Path
    """PNG."""
    interactive: str = ""
    """The same as HTML with plotly's program; empty without plotly."""


def write_figures(result: SearchResult, folder: Path) -> list[Drawn]:
    """Draw a study: history, importance, slice and parallel coordinates, and the Pareto front.

    A figure that the study is too small for is left out, and the log says so.
    """
    study = result.study
    folder.mkdir(parents=True, exist_ok=True)
    plotly = importlib.util.find_spec("plotly") is not None
    drawn: list[Drawn] = []
    program = True  # plotly's, which the first figure that can be drawn brings for all of the page
    for title, function, options in _plots(result.names):
        path = folder / f"{title.replace(' ', '_').replace('/', '_')}.png"
        if not _drawn(_save_png, function, study, options, path):
            continue
        part = _drawn(_plotly_part, function, study, options, program) if plotly else None
        program = program and part is None
        drawn.append(Drawn(title, path, part or ""))
    return drawn


def _plots(names: tuple[str, ...]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield title, Optuna's function and its arguments of each figure."""
    if len(names) in (2, 3):
        yield "pareto front", "plot_pareto_front", {"target_names": list(names)}
    for place, name in enumerate(names):
        for title, function in _EACH_OBJECTIVE.items():
            options: dict[str, Any] = {"target_name": name}
            if len(names) > 1:
                title, options["target"] = f"{title} {name}", _value_at(place)
            yield title, function, options


def _value_at(place: int) -> Callable[[FrozenTrial], float]:
    return lambda trial: float(trial.values[place])


def _drawn(draw: Callable[..., Any], function: str, *arguments: Any) -> Any:
    """Return what `draw` gives; None, and a line in the log, where Optuna cannot draw it."""
    from optuna.exceptions import ExperimentalWarning

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            warnings.simplefilter("ignore", UserWarning)  # of trials without values, and layouts
            return draw(function, *arguments)
    except Exception as error:
        # Optuna's figures fail in many ways on odd studies, and none is worth the report that comes
        # after them.
        reason = f"{type(error).__name__}: {error}"
        log.warning("no figure of %s: %s", function.removeprefix("plot_"), reason)
        return None


def _save_png(function: str, study: optuna.Study, options: dict[str, Any], path: Path) -> Path:
    import matplotlib.pyplot as plt
    import numpy as np
    import optuna.visualization.matplotlib as drawing

    plt.switch_backend("Agg")
    logging.getLogger("matplotlib.category").setLevel(logging.WARNING)
    try:
        axes = getattr(drawing, function)(study, **options)
        figure = np.atleast_1d(axes).ravel()[0].figure
        if function in _INCHES_PER_PARAMETER:  # an axis or a panel each, whose labels need room
            width = _INCHES_PER_PARAMETER[function] * len(study.best_trials[0].params)
            figure.set_size_inches(max(6.4, width), 5)
        if function == "plot_slice":
            _separate_labels(figure)
        figure.savefig(path, dpi=_DOTS_PER_INCH, bbox_inches="tight")
    finally:
        plt.close("all")
    return path


def _separate_labels(figure: Figure) -> None:
    """Put names above the panels, values aslant below: side by side they would overlap."""
    for panel in figure.axes:
        panel.set_title(panel.get_xlabel(), fontsize=9)
        panel.set_xlabel("")
        panel.xaxis.set_minor_formatter("")  # of a log scale's ticks the powers are enough
        for label in panel.get_xticklabels():
            label.set(rotation=40, horizontalalignment="right", rotation_mode="anchor")


def _plotly_part(function: str, study: optuna.Study, options: dict[str, Any], first: bool) -> str:
    """Return the figure as HTML, with plotly's program where it is the first."""
    import optuna.visualization as drawing

    figure = getattr(drawing, function)(study, **options)
    figure.update_layout(title_text="", margin_t=40)  # the page has a heading
    shown = {"displaylogo": False}
    return str(figure.to_html(full_html=False, include_plotlyjs=first, config=shown))
