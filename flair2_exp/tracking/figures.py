"""Figures of a run: the confusion matrix with the IoU of each class, and a panel of test patches.

Drawn with matplotlib's objects and its Agg canvas: no window, no global state, so that they can be
made in any thread and beside any backend. matplotlib is imported when a figure is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from flair2_exp.nomenclature import SCORED, LandCover
from flair2_exp.score import confusion_matrix, iou, miou

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WRONG: Final = (213, 94, 0)
_UNSCORED: Final = (86, 180, 233)
"""Vermilion and sky blue of the palette of Okabe and Ito (2008), told apart by colour-blind
readers, also over grey."""

_TEXT: Final = "#222222"


def save(figure: Figure, path: str | Path, dpi: int = 150) -> Path:
    """Write a figure; the format follows from the name. Returns the path."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=dpi, facecolor="white")
    return target


def _figure(width: float, height: float) -> Figure:
    """An empty figure of that many inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _title(figure: Figure, x: float, y: float, title: str) -> None:
    """A line above all; a run's name in it may hold dollar signs, which are no formula."""
    figure.text(x, y, title, va="top", fontsize=12, color=_TEXT, parse_math=False)


def confusion(
    counts: npt.ArrayLike,
    classes: Sequence[LandCover],
    *,
    title: str = "",
    scored: int = SCORED,
) -> Figure:
    """The confusion matrix in per cent of each row, and the IoU of each class beside it.

    Args:
        counts: (C, C) pixels, rows truth, columns prediction.
        classes: The C classes, for names and colours.
        title: A line above.
        scored: The score is the mean over the first `scored` classes; the others' IoU is not shown.

    Returns:
        A figure of 10.4 × 6.6 inches.

    Raises:
        ValueError: The matrix is not of these classes.
    """
    matrix = np.asarray(counts, dtype=np.float64)
    if matrix.shape != (len(classes), len(classes)):
        raise ValueError(f"{len(classes)} classes need a square matrix, not {matrix.shape}")
    figure = _figure(10.4, 6.6)
    cells = figure.add_axes((0.217, 0.21, 0.515, 0.69))
    bars = figure.add_axes((0.755, 0.21, 0.225, 0.69))
    _draw_matrix(cells, matrix, classes)
    _draw_iou(bars, iou(matrix)[:scored], classes)
    bars.set_ylim(*cells.get_ylim())
    figure.text(0.21, 0.909, "truth (share)", ha="right", fontsize=10.5, color=_TEXT)
    if title:
        _title(figure, 0.01, 0.985, title)
    return figure


def _draw_matrix(axes: Axes, counts: npt.NDArray[np.float64], classes: Sequence[LandCover]) -> None:
    rows = counts.sum(axis=1)
    with np.errstate(invalid="ignore"):
        shares = 100 * counts / rows[:, None]
    axes.imshow(np.nan_to_num(shares), cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for row, column in np.argwhere(shares >= 0.5).tolist():
        share = shares[row, column]
        axes.text(
            column,
            row,
            f"{share:.0f}",
            ha="center",
            va="center",
            fontsize=9,
            fontweight="bold" if row == column else "normal",
            color="white" if share > 55 else _TEXT,
        )
    for absent in np.flatnonzero(rows == 0):
        row = int(absent)
        axes.axhspan(row - 0.5, row + 0.5, facecolor="#ececec", zorder=3)
        axes.text(
            (len(classes) - 1) / 2, row, "no pixels counted", ha="center", va="center", fontsize=9,
            color="#666666", style="italic", zorder=4,
        )  # fmt: skip
    total = max(rows.sum(), 1.0)
    names = [entry.name for entry in classes]
    labels = [f"{name}  {100 * row / total:.1f} %" for name, row in zip(names, rows, strict=True)]
    axes.set_yticks(range(len(names)), labels, fontsize=9.5, color=_TEXT)
    axes.set_xticks(range(len(names)), names, fontsize=9.5, color=_TEXT, rotation=40, ha="right",
                    rotation_mode="anchor")  # fmt: skip
    axes.set_xlabel("prediction", fontsize=10.5, color=_TEXT)
    axes.set_title("per cent of the truth's pixels", fontsize=10.5, color=_TEXT, loc="left")
    axes.set_xticks(np.arange(0.5, len(names)), minor=True)
    axes.set_yticks(np.arange(0.5, len(names)), minor=True)
    axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)


def _draw_iou(axes: Axes, scores: npt.NDArray[np.float64], classes: Sequence[LandCover]) -> None:
    places = range(len(scores))
    axes.barh(
        places,
        np.nan_to_num(scores),
        height=0.72,
        color=[entry.colour for entry in classes[: len(scores)]],
        edgecolor="#444444",
        linewidth=0.7,
    )
    for place, score in zip(places, scores, strict=True):
        text = "absent" if np.isnan(score) else f"{score:.2f}"
        axes.text(1.2, place, text, ha="right", va="center", fontsize=9, color=_TEXT)
    for place in range(len(scores), len(classes)):
        axes.text(
            1.2, place, "not scored", ha="right", va="center", fontsize=9, color="#666666",
            style="italic",
        )  # fmt: skip
    present = scores[~np.isnan(scores)]
    if present.size:
        mean = float(present.mean())
        axes.axvline(mean, color=_TEXT, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_title(f"IoU   (dashed: mean {mean:.3f})", fontsize=10.5, color=_TEXT, loc="left")
    axes.set_xlim(0, 1.22)
    axes.set_xticks((0, 0.5, 1), ("0", "0.5", "1"), fontsize=9.5, color=_TEXT)
    axes.set_yticks([])
    axes.spines[["top", "right"]].set_visible(False)


def panel(
    images: npt.NDArray[np.uint8],
    truths: npt.NDArray[np.uint8],
    predictions: npt.NDArray[np.uint8],
    ids: Sequence[str],
    classes: Sequence[LandCover],
    *,
    title: str = "",
    scored: int = SCORED,
) -> Figure:
    """Test patches, one a row: image, truth, prediction and errors, in the class colours.

    Above each row: the patch, its share of pixels that are right and its mean IoU over the scored
    classes that its truth or prediction holds. Pixels whose truth is not a scored class count in
    neither and are marked.

    Args:
        images: (N, H, W, 3) uint8, red, green and blue.
        truths: (N, H, W) uint8 class indices.
        predictions: (N, H, W) uint8 class indices.
        ids: N names.
        classes: The classes by index.
        title: A line above.
        scored: The first `scored` classes count.

    Returns:
        A figure 9.6 inches wide and about 2.6 inches a patch high.

    Raises:
        ValueError: No patch, or shapes that do not fit together.
    """
    count = len(ids)
    if (
        count == 0
        or images.shape != (*truths.shape, 3)
        or truths.shape != predictions.shape
        or len(truths) != count
    ):
        raise ValueError(
            f"{count} patches need images (N, H, W, 3) and two masks (N, H, W), not "
            f"{images.shape}, {truths.shape} and {predictions.shape}"
        )
    shown = sorted(set(np.unique(truths)) | set(np.unique(predictions)))
    unscored = bool((truths >= scored).any())
    layout = _PanelLayout(count, lines=-(-(len(shown) + 1 + unscored) // 5), titled=bool(title))
    figure = _figure(layout.width, layout.height)
    palette = np.array([_rgb(entry.colour) for entry in classes], dtype=np.uint8)
    for row in range(count):
        truth, prediction = truths[row], predictions[row]
        tiles = (
            images[row],
            palette[truth],
            palette[prediction],
            _errors(images[row], truth, prediction, scored),
        )
        for column, tile in enumerate(tiles):
            axes = figure.add_axes(layout.tile(row, column))
            axes.imshow(tile, interpolation="antialiased" if column in (0, 3) else "nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_color("#888888")
            if row == 0:
                axes.set_title(_COLUMNS[column], fontsize=11, color=_TEXT, pad=22)
        text = f"{ids[row]}     {_patch_scores(truth, prediction, len(classes), scored)}"
        figure.text(*layout.caption(row), text, fontsize=9.5, color=_TEXT, va="bottom")
    _legend(figure, [classes[index] for index in shown], unscored=unscored)
    if title:
        _title(figure, layout.left, 1 - 0.12 / layout.height, title)
    return figure


_COLUMNS: Final = ("image", "truth", "prediction", "errors")


class _PanelLayout:
    """Where the tiles of a panel lie, in shares of the figure."""

    _tile, _gap, _caption, _margin = 2.28, 0.1, 0.3, 0.09  # inches

    def __init__(self, rows: int, lines: int, *, titled: bool) -> None:
        self._top = 0.33 + (0.36 if titled else 0.0)
        self.width = 4 * self._tile + 3 * self._gap + 2 * self._margin
        self.height = self._top + rows * (self._tile + self._caption) + 0.16 + 0.25 * lines
        self.left = self._margin / self.width

    def tile(self, row: int, column: int) -> tuple[float, float, float, float]:
        left = self._margin + column * (self._tile + self._gap)
        top = self._top + row * (self._tile + self._caption) + self._caption
        bottom = self.height - top - self._tile
        return (
            left / self.width,
            bottom / self.height,
            self._tile / self.width,
            self._tile / self.height,
        )

    def caption(self, row: int) -> tuple[float, float]:
        _, bottom, _, height = self.tile(row, 0)
        return self.left, bottom + height + 0.05 / self.height


def _rgb(colour: str) -> tuple[int, int, int]:
    """The three numbers of `#rrggbb`."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _errors(
    image: npt.NDArray[np.uint8],
    truth: npt.NDArray[np.uint8],
    prediction: npt.NDArray[np.uint8],
    scored: int,
) -> npt.NDArray[np.uint8]:
    """The image in pale grey, wrong pixels in vermilion, unscored ones in blue; uint8 (H, W, 3)."""
    grey = 150 + image.mean(axis=2, keepdims=True) * (105 / 255)
    tile = np.repeat(grey, 3, axis=2)
    unscored = truth >= scored
    for where, colour in ((~unscored & (truth != prediction), _WRONG), (unscored, _UNSCORED)):
        # A quarter of the grey stays, so that what lies under an error can still be seen.
        tile[where] = 0.25 * tile[where] + 0.75 * np.array(colour)
    return tile.astype(np.uint8)


def _patch_scores(
    truth: npt.NDArray[np.uint8], prediction: npt.NDArray[np.uint8], classes: int, scored: int
) -> str:
    """Share of right pixels and mean IoU of one patch, over its scored pixels, in words."""
    where = truth < scored
    if not where.any():
        return "no scored pixel"
    truth, prediction = truth[where], prediction[where]
    counts = confusion_matrix(truth, prediction, classes)
    right = np.trace(counts) / counts.sum()
    return f"{right:.0%} of pixels right,  mean IoU {float(miou(counts, scored)):.2f}"


def _legend(figure: Figure, classes: Sequence[LandCover], *, unscored: bool) -> None:
    from matplotlib.patches import Patch

    entries: list[tuple[Any, str]] = [(entry.colour, entry.name) for entry in classes]
    errors = [(_WRONG, "errors: wrong class"), (_UNSCORED, "errors: truth not scored")]
    for colour, name in errors if unscored else errors[:1]:
        entries.append((tuple(part / 255 for part in colour), name))
    handles = [
        Patch(facecolor=colour, edgecolor="#444444", linewidth=0.7, label=name)
        for colour, name in entries
    ]
    figure.legend(
        handles=handles,
        loc="lower center",
        ncols=5,
        fontsize=9.5,
        frameon=False,
        borderaxespad=0.2,
        handlelength=1.4,
        handleheight=1.0,
        columnspacing=1.3,
        labelcolor=_TEXT,
    )
