"""The report's figures: legible in print, safe for colour-blind readers.

Rows have the colours of Okabe and Ito (2008) and a marker each, so that none is told by colour
alone; classes have their own colours as swatches beside their names. Each function returns a
matplotlib `Figure` and touches no global state.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from flair2_exp.nomenclature import Nomenclature
from flair2_exp.report import words
from flair2_exp.report.panels import panel_of
from flair2_exp.report.results import FEW_ROWS, Contrast, Report, Row, Score
from flair2_exp.report.runs import CURVES, Curve
from flair2_exp.report.statistics import Floats, Integers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")
WIDTH: Final[float] = 7.2
"""Inches: a printed page's text, so that letters keep their size in print."""

MOST_ROWS: Final = 40
"""A figure with more lines does not fit on a page; 32 are a factorial of five factors."""
MOST_CURVES: Final = 12
"""Panels of learning curves: four lines of three."""

_STYLE: Final[Any] = {  # its keys' type differs between versions of matplotlib
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "figure.dpi": 200,  # as saved: letters have other widths at other resolutions
    "savefig.dpi": "figure",
    "text.parse_math": False,  # a row's name may hold a dollar sign
    "svg.hashsalt": "flair2_exp",  # the same figure gives the same file
}


@contextmanager
def style() -> Iterator[None]:
    """Fonts and lines of the report, for the duration of drawing and saving."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        yield


def figures(report: Report) -> dict[str, Figure]:
    """Return all figures that the report has content for, by file name."""
    drawn = {}
    with style():
        for draw in (forest, iou_by_class, panels, confusion, learning_curves, effects):
            figure = draw(report)
            if figure is not None:
                # Laid out once: each saving would do it again, with another result and at a cost.
                figure.draw_without_rendering()
                figure.set_layout_engine("none")
                drawn[draw.__name__] = figure
    return drawn


def _new(
    width: float, height: float, *, hspace: float | None = None, wspace: float | None = None
) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(hspace=hspace, wspace=wspace)
    return Figure(figsize=(width, height), layout=layout)


def _from_above(axes: Axes, names: Sequence[str], *, top: float = -0.5, grid: str) -> None:
    """Name the lines of a figure, from above, and draw a grid for their numbers."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, top)
    axes.grid(axis="x", color=grid, lw=0.6)
    axes.set_axisbelow(True)


def _foot(figure: Figure, report: Report, *parts: str) -> None:
    """Write a line below all panels; it says where scores are of synthetic data."""
    text = "; ".join([*parts, *(["synthetic sample data"] if report.synthetic else [])])
    figure.supxlabel(text, fontsize=7.5, color="#444444")


def _foremost(report: Report, rows: Sequence[Row], limit: int) -> tuple[Sequence[Row], list[str]]:
    """Return the baseline and the best of many rows, in their order, and a line that says so."""
    if len(rows) <= limit:
        return rows, []
    best = sorted(rows, key=lambda row: (row.name != report.baseline, -(row.miou.value or 0.0)))
    kept = {row.name for row in best[:limit]}
    return [row for row in rows if row.name in kept], [
        f"the baseline and the best {limit - 1} of {len(rows) - 1} other rows"
    ]


def _interval(axes: Axes, score: Score, y: float, colour: str, marker: str, size: float) -> None:
    if score.value is None:
        return
    for (low, high), width, alpha in ((score.beside, 4.5, 0.3), (score.shown, 1.6, 1.0)):
        if low is not None and high is not None:
            line = axes.plot([low, high], [y, y], color=colour, lw=width, alpha=alpha)[0]
            line.set_solid_capstyle("butt")
    axes.plot(score.value, y, marker, color=colour, ms=size, mec="white", mew=0.6, zorder=3)


def forest(report: Report) -> Figure:
    """Draw each row's mIoU with its interval and runs, and its difference to the baseline."""
    rows, left_out = _foremost(report, report.rows, MOST_ROWS)
    figure = _new(WIDTH, 1.3 + 0.42 * len(rows), wspace=0.03)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.0, 1.0])
    for at, row in enumerate(rows):
        _interval(left, row.miou, at, COLOURS[0], "o", 6)
        left.plot(row.scores, [at + 0.24] * len(row.scores), "|", color="#555555", ms=6, mew=1)
        if row.published:
            left.plot(row.published.mean, at - 0.24, "D", color="white", mec="black", ms=4.5)
        _difference(right, row, at)
    left.set_xlabel("mIoU")
    left.set_title("Mean over seeds, 95 % interval\n| single runs", loc="left", fontsize=8)
    right.axvline(0, color="black", lw=0.8)
    right.set_xlabel("difference in mIoU")
    # Long names leave less room, and get smaller letters rather than run over the edge.
    size = min(8.0, 280 / len(report.baseline))
    right.set_title(f"95 % joint interval, against\n{report.baseline}", loc="left", fontsize=size)
    right.tick_params(left=False)
    names = [f"{row.name} *" if row.absent else row.name for row in rows]
    for axes in (left, right):
        axes.margins(x=0.12)  # room for the labels of points at the ends
        axes.locator_params(axis="x", nbins=5)  # small differences have long labels
        _from_above(axes, names, top=-0.6, grid="#dddddd")
    foot = left_out + _drawn(report)
    foot += ["◇ published mean"] if any(row.published for row in rows) else []
    foot += ["* seeds missing or failed"] if any(row.absent for row in rows) else []
    _foot(figure, report, *foot)
    return figure


def _drawn(report: Report) -> list[str]:
    """Return what the intervals are over, for below a figure."""
    units = words.plural(report.units, f"test {report.unit}")
    if all(row.miou.low is None for row in report.rows):
        return [f"{units}: no interval can be given"]
    return [f"intervals over {units}", *(["pale: over areas"] if report.unit == "domain" else [])]


def _difference(axes: Axes, row: Row, at: int) -> None:
    if row.against_baseline is None:
        axes.text(0.0, at, " baseline", va="center", fontsize=8, color="#444444")
        return
    score = row.against_baseline.miou
    _interval(axes, score, at, COLOURS[1], "s", 5.5)
    axes.annotate(
        _label(score, ", "), (score.value or 0.0, at),
        (0, 5), textcoords="offset points", ha="center", fontsize=7,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
    )  # fmt: skip


def _label(score: Contrast, between: str) -> str:
    p = "" if score.joint_p is None else f"{between}{words.p_equals(score.joint_p)}"
    return f"{words.signed(score.value)}{p}"


def iou_by_class(report: Report) -> Figure:
    """Draw IoU of each scored class by row: dots with intervals, or a heat map of many rows."""
    if len(report.rows) > FEW_ROWS:
        return _heat_map(report)
    names = report.scored
    figure = _new(WIDTH, 1.1 + len(names) * (0.18 + 0.1 * len(report.rows)))
    axes = figure.subplots()
    step = 0.8 / len(report.rows)
    for at, row in enumerate(report.rows):
        offset = (at - (len(report.rows) - 1) / 2) * step
        colour, marker = COLOURS[at % len(COLOURS)], MARKERS[at % len(MARKERS)]
        for place, score in enumerate(row.classes):
            _interval(axes, score, place + offset, colour, marker, 5)
        axes.plot([], [], marker=marker, color=colour, lw=1.6, ms=5, label=row.name)
    for place in range(0, len(names), 2):
        axes.axhspan(place - 0.5, place + 0.5, color="#f2f2f2", zorder=0)
    _from_above(axes, names, grid="#d0d0d0")
    axes.set_xlim(*_tenths([score for row in report.rows for score in row.classes]))
    axes.set_xlabel("IoU, mean over seeds, 95 % interval")
    _swatches(axes, names, report.nomenclature, vertical=True)
    longest = max(len(row.name) for row in report.rows)
    columns = max(1, min(3, len(report.rows), int(WIDTH / (0.5 + 0.065 * longest))))  # in inches
    figure.legend(loc="outside upper center", ncols=columns, frameon=False)
    _foot(figure, report, *_drawn(report))
    return figure


def _tenths(scores: Sequence[Score]) -> tuple[float, float]:
    """Return the tenths of 0..1 between which all intervals lie."""
    ends = [end for one in scores for end in (one.value, one.low, one.high) if end is not None]
    if not ends:
        return 0.0, 1.0
    return math.floor(10 * min(ends)) / 10, max(math.ceil(10 * max(ends)) / 10, 0.1)


def _heat_map(report: Report) -> Figure:
    names = report.scored
    rows, left_out = _foremost(report, report.rows, MOST_ROWS)
    values = np.array([[each.value for each in row.classes] for row in rows], float)
    figure = _new(WIDTH, 1.9 + 0.24 * len(rows))
    axes = figure.subplots()
    image = axes.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    inks = np.where(values > 0.55, "black", "white")
    _write_in(axes, values, "{:.2f}", inks, 7)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    _swatches(axes, names, report.nomenclature, vertical=False)
    figure.colorbar(image, ax=axes, label="IoU, mean over seeds", fraction=0.03)
    _foot(figure, report, *left_out)
    return figure


def _write_in(axes: Axes, values: Floats, form: str, inks: NDArray[np.str_], size: float) -> None:
    """Write in each cell of a drawn matrix (Y, X) its number; none where it is NaN."""
    for (y, x), value in np.ndenumerate(values):
        if np.isfinite(value):
            text = form.format(value).replace("-", "−")
            axes.text(x, y, text, ha="center", va="center", fontsize=size, color=inks[y, x])


def _swatches(
    axes: Axes, names: Sequence[str], nomenclature: Nomenclature, *, vertical: bool
) -> None:
    """Draw a square of each class's colour between its name and the axis."""
    from matplotlib.transforms import ScaledTranslation, blended_transform_factory

    colours = {one.name: one.colour for one in nomenclature.classes}
    parts = (axes.transAxes, axes.transData) if vertical else (axes.transData, axes.transAxes)
    shift = (-0.075, 0.0) if vertical else (0.0, -0.075)  # inches
    outwards = ScaledTranslation(*shift, axes.figure.dpi_scale_trans)
    place = blended_transform_factory(*parts) + outwards
    look: dict[str, Any] = {"ms": 6, "mec": "#444444", "mew": 0.4, "clip_on": False}
    for at, name in enumerate(names):
        x, y = (0.0, at) if vertical else (at, 0.0)
        axes.plot(x, y, "s", color=colours[name], transform=place, **look)
    axes.tick_params(axis="y" if vertical else "x", length=0, pad=11)


def confusion(report: Report) -> Figure:
    """Draw the confusion of the baseline and of the best other row, and their difference."""
    base = report.row(report.baseline)
    others = sorted(
        (row for row in report.rows if row.name != base.name),
        key=lambda row: row.miou.value or 0.0,
    )
    figure = _new(8.4, 9.0 if others else 5.6, hspace=0.02, wspace=0.02)
    grid = figure.subplots(2 if others else 1, 2).ravel()
    shares = _share(base.confusion)
    _matrix(grid[0], shares, report.nomenclature, base.name)
    if others:
        best = others[-1]
        best_shares = _share(best.confusion)
        _matrix(grid[1], best_shares, report.nomenclature, best.name)
        grid[1].set_yticklabels([])  # the names stand at the left matrix of the same line
        grid[1].set_ylabel("")
        title = f"{best.name}\n− {base.name}"
        _matrix(grid[2], best_shares - shares, report.nomenclature, title, change=True)
    _explain(grid[-1], bool(others))
    _foot(figure, report)
    return figure


def panels(report: Report) -> Figure | None:
    """Draw the same test patches as rows predict them; None where runs have kept none."""
    panel = panel_of(report)
    if panel is None:
        return None
    from matplotlib.colors import to_rgb

    nomenclature = report.nomenclature
    columns, lines = 2 + len(panel.predictions), len(panel.patches)
    side = _PANEL_WIDTH / columns
    figure = _new(_PANEL_WIDTH, 0.9 + (side + 0.1) * lines)
    grid = figure.subplots(lines, columns, squeeze=False)
    palette = np.array([to_rgb(one.colour) for one in nomenclature.classes])
    for at, tiles in enumerate(grid):
        truth = panel.truths[at]
        masks = [truth, *(patches[at] for _, patches in panel.predictions)]
        for axes, tile in zip(tiles, [panel.images[at], *(palette[each] for each in masks)],
                              strict=True):  # fmt: skip
            axes.imshow(tile, interpolation="nearest", extent=(0, 1, 1, 0))
            axes.set(xticks=[], yticks=[])
        tiles[0].set_xlabel(panel.patches[at], fontsize=7)
        for axes, mask in zip(tiles[2:], masks[1:], strict=True):
            axes.set_xlabel(_right(truth, mask, nomenclature.scored), fontsize=7)
    heads = ["image", "truth", *(f"{run.row}\nseed {run.seed}" for run, _ in panel.predictions)]
    for axes, head in zip(grid[0], heads, strict=True):
        longest = max(map(len, head.split("\n")))
        axes.set_title(head, fontsize=min(8.5, 110 * side / longest), loc="left")
    shown = np.unique([*panel.truths, *(each for _, them in panel.predictions for each in them)])
    _class_legend(figure, nomenclature, shown.tolist())
    return figure


_PANEL_WIDTH: Final = 9.0


def _right(truth: NDArray[np.uint8], mask: NDArray[np.uint8], scored: int) -> str:
    """Return how many of the pixels of scored classes are right."""
    counted = truth < scored
    if not counted.any():
        return "no scored pixel"
    return f"{(truth == mask)[counted].mean():.0%} right"


def _class_legend(figure: Figure, nomenclature: Nomenclature, shown: Sequence[int]) -> None:
    from matplotlib.patches import Patch

    classes = [nomenclature.classes[index] for index in shown]
    handles = [Patch(facecolor=one.colour, edgecolor="#444444", linewidth=0.5, label=one.name)
               for one in classes]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, fontsize=8)


def _share(counts: Integers) -> Floats:
    """Return of each true class's pixels the share predicted as each; NaN without such pixels."""
    total = counts.sum(axis=1, keepdims=True).astype(np.float64)
    return counts / np.where(total > 0, total, np.nan)


def _matrix(
    axes: Axes,
    values: Floats,
    nomenclature: Nomenclature,
    title: str,
    *,
    change: bool = False,
) -> None:
    names = nomenclature.names
    percent = 100 * values
    size = np.abs(percent)
    if change:
        limit = max(5.0, float(np.nanmax(size)))
        axes.imshow(percent, cmap="PuOr_r", vmin=-limit, vmax=limit)
        form, dark = "{:+.0f}", 0.6 * limit
    else:
        axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
        form, dark = "{:.0f}", 55.0
    inks = np.where(size > dark, "white", "black")
    _write_in(axes, np.where(size >= 0.5, percent, np.nan), form, inks, 6.5)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    for vertical in (True, False):
        _swatches(axes, names, nomenclature, vertical=vertical)
    axes.set_title(title, loc="left")
    axes.set_xlabel("prediction")
    axes.set_ylabel("truth")
    axes.spines[["left", "bottom"]].set_visible(False)


_SHARES: Final = """\
Each line: of the pixels of that true class,
the per cent predicted as each class
(all seeds and test areas together).
Empty: below 0.5 %, or no pixel of the class."""

_CHANGE: Final = """

Difference, in percentage points:
orange: more often than in the baseline,
violet: less often. On the diagonal orange
is better, elsewhere violet is."""


def _explain(axes: Axes, compared: bool) -> None:
    axes.axis("off")
    text = _SHARES + (_CHANGE if compared else "")
    axes.text(0.05, 0.95, text, va="top", fontsize=9, linespacing=1.5)


def learning_curves(report: Report) -> Figure | None:
    """Draw validation mIoU (or loss) over the epochs: mean and range over seeds, by row."""
    for name, label in zip(CURVES, ("validation mIoU", "validation loss"), strict=True):
        measured = [row for row in report.rows if row.curves(name)]
        if measured:
            rows, left_out = _foremost(report, measured, MOST_CURVES)
            return _curves(report, {row.name: row.curves(name) for row in rows}, label, left_out)
    return None


def _curves(
    report: Report, curves: Mapping[str, Sequence[Curve]], label: str, left_out: Sequence[str]
) -> Figure:
    """Draw a panel for each row, with the others in grey."""
    from matplotlib.ticker import MaxNLocator

    columns = min(3, len(curves))
    lines = -(-len(curves) // columns)
    figure = _new(WIDTH, 0.5 + 2.1 * lines)
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    means = [_mean_curve(each) for each in curves.values()]
    for at, (axes, (name, of_seeds)) in enumerate(zip(grid, curves.items(), strict=False)):
        for epochs, mean, _, _ in means:
            axes.plot(epochs, mean, color="#cccccc", lw=0.8, zorder=1)
        colour, (epochs, mean, low, high) = COLOURS[at % len(COLOURS)], means[at]
        for curve in of_seeds:
            axes.plot(*np.array(curve).T, color=colour, lw=0.6, alpha=0.6, zorder=2)
        axes.fill_between(epochs, low, high, color=colour, alpha=0.25, lw=0, zorder=2)
        axes.plot(epochs, mean, color=colour, lw=1.8, zorder=3)
        seeds = words.plural(len(of_seeds), "seed")
        axes.text(0.97, 0.05, seeds, transform=axes.transAxes, ha="right", fontsize=7.5)
        # Long names get small letters rather than run into the next panel.
        axes.set_title(name, loc="left", fontsize=min(8.5, 680 / (columns * len(name))))
        axes.grid(color="#e5e5e5", lw=0.6)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.tick_params(labelbottom=True, labelleft=True)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
    for axes in grid[len(curves) :]:
        axes.axis("off")
    lines_of = "bold: mean over seeds while all train, band: their range, grey: the other panels"
    _foot(figure, report, *left_out, lines_of)
    return figure


def _mean_curve(curves: Sequence[Curve]) -> tuple[list[float], Floats, Floats, Floats]:
    """Return the epochs that all seeds reached, so that none stops within the mean.

    With mean, lowest and highest value of each.
    """
    courses = [dict(curve) for curve in curves]
    epochs = sorted(set.intersection(*map(set, courses)))
    values = np.array([[course[epoch] for epoch in epochs] for course in courses])
    return epochs, values.mean(axis=0), values.min(axis=0), values.max(axis=0)


def effects(report: Report) -> Figure | None:
    """Draw main effects and two-way interactions with their intervals."""
    if not report.effects:
        return None
    figure = _new(WIDTH, 1.1 + 0.3 * len(report.effects))
    axes = figure.subplots()
    for at, effect in enumerate(report.effects):
        main = "×" not in effect.row
        colour, marker = (COLOURS[0], "o") if main else (COLOURS[1], "D")
        _interval(axes, effect.miou, at, colour, marker, 6 if main else 5)
        axes.text(1.01, at, _label(effect.miou, "  "), transform=axes.get_yaxis_transform(),
                  va="center", fontsize=7.5)  # fmt: skip
    axes.axvline(0, color="black", lw=0.8)
    _from_above(axes, [effect.row for effect in report.effects], grid="#dddddd")
    axes.set_xlabel("effect on mIoU, 95 % joint interval")
    axes.set_title("● main effects   ◆ interactions (half the difference of effects)", loc="left")
    _foot(figure, report, *_drawn(report))
    return figure
