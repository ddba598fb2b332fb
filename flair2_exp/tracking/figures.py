"""Figures of a run: the confusion matrix with the IoU of each class, and a panel of test patches.

Each function returns matplotlib's figure, to be written with `figure.savefig(PATH)`. They are drawn
with matplotlib's objects: no window, no global state, so that they can be made in any thread and
beside any backend. matplotlib is imported when a figure is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from flair2_exp.nomenclature import LandCover, Nomenclature
from flair2_exp.score import confusion_matrix, iou, known_mean, miou

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    ByteArray = npt.NDArray[np.uint8]

_WRONG: Final = "#d55e00"
_UNSCORED: Final = "#56b4e9"
"""Vermilion and sky blue of the palette of Okabe and Ito (2008), told apart by colour-blind
readers, also over grey."""

_NOTE: Final[dict[str, Any]] = {
    "va": "center",
    "fontsize": 9,
    "color": "#666666",
    "style": "italic",
}
"""The look of words that stand for a number."""
_EDGE: Final[dict[str, Any]] = {"edgecolor": "#444444", "linewidth": 0.7}
"""The look of the edge of a field in a class colour."""


def _figure(width: float, height: float, title: str) -> Figure:
    """Return a figure of that many inches, empty but for a line above all."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    # A run's name may hold dollar signs, which do not begin a formula.
    figure.suptitle(title, x=0.01, y=1 - 0.1 / height, ha="left", fontsize=12, parse_math=False)
    return figure


def confusion(
    counts: npt.ArrayLike,
    nomenclature: Nomenclature,
    *,
    title: str = "",
) -> Figure:
    """Draw the confusion matrix in per cent of each row, and the IoU of each class beside it.

    Args:
        counts: (C, C) pixels, rows truth, columns prediction.
        nomenclature: The C classes; the IoU of those that are not scored is not shown.
        title: A line above.

    Returns:
        A figure of 10.4 × 6.6 inches.

    Raises:
        ValueError: The matrix is not of these classes.
    """
    matrix = np.asarray(counts, dtype=np.float64)
    classes, scored = nomenclature.classes, nomenclature.scored
    if matrix.shape != (len(classes), len(classes)):
        raise ValueError(f"{len(classes)} classes need a square matrix, not {matrix.shape}")
    figure = _figure(10.4, 6.6, title)
    cells, bars = figure.subplots(
        1, 2, sharey=True, width_ratios=(7, 3),
        gridspec_kw={"left": 0.22, "right": 0.98, "bottom": 0.21, "top": 0.9, "wspace": 0.05},
    )  # fmt: skip
    _draw_matrix(cells, matrix, classes)
    _draw_iou(bars, iou(matrix)[:scored], classes)
    return figure


def _draw_matrix(axes: Axes, counts: npt.NDArray[np.float64], classes: Sequence[LandCover]) -> None:
    rows = counts.sum(axis=1)
    with np.errstate(invalid="ignore"):
        shares = 100 * counts / rows[:, None]
    axes.imshow(np.nan_to_num(shares), cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for row, column in np.argwhere(shares >= 0.5).tolist():
        share = shares[row, column]
        weight, ink = "bold" if row == column else "normal", "white" if share > 55 else "black"
        axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=9,
                  fontweight=weight, color=ink)  # fmt: skip
    for row in np.flatnonzero(rows == 0).tolist():
        axes.axhspan(row - 0.5, row + 0.5, facecolor="#ececec", zorder=3)
        middle = (len(classes) - 1) / 2
        axes.text(middle, row, "no pixels counted", ha="center", zorder=4, **_NOTE)
    total = max(rows.sum(), 1.0)
    names = [entry.name for entry in classes]
    labels = [f"{name}  {100 * row / total:.1f} %" for name, row in zip(names, rows, strict=True)]
    places = range(len(names))
    axes.set_xticks(places, names, fontsize=9.5, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(places, labels, fontsize=9.5)
    axes.set_xlabel("prediction")
    axes.set_title("per cent of the truth's pixels", fontsize=10.5, loc="left")
    axes.text(-0.01, 1.02, "truth (share)", ha="right", transform=axes.transAxes)
    axes.set_xticks(np.arange(0.5, len(names)), minor=True)
    axes.set_yticks(np.arange(0.5, len(names)), minor=True)
    axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)


def _draw_iou(axes: Axes, scores: npt.NDArray[np.float64], classes: Sequence[LandCover]) -> None:
    places = range(len(scores))
    colours = [entry.colour for entry in classes[: len(scores)]]
    axes.barh(places, np.nan_to_num(scores), 0.72, color=colours, **_EDGE)
    for place, score in enumerate(scores):
        text = "absent" if np.isnan(score) else f"{score:.2f}"
        axes.text(1.2, place, text, ha="right", va="center", fontsize=9)
    for place in range(len(scores), len(classes)):
        axes.text(1.2, place, "not scored", ha="right", **_NOTE)
    mean = float(known_mean(scores, 0))
    if not np.isnan(mean):
        axes.axvline(mean, color="black", linewidth=1, linestyle=(0, (4, 3)))
        axes.set_title(f"IoU   (dashed: mean {mean:.3f})", fontsize=10.5, loc="left")
    axes.set_xlim(0, 1.22)
    axes.set_xticks((0, 0.5, 1), ("0", "0.5", "1"), fontsize=9.5)
    axes.tick_params(axis="y", which="both", length=0, labelleft=False)
    axes.spines[["top", "right"]].set_visible(False)


def panel(
    images: ByteArray,
    truths: ByteArray,
    predictions: ByteArray,
    ids: Sequence[str],
    nomenclature: Nomenclature,
    *,
    title: str = "",
) -> Figure:
    """Draw test patches, one per row: image, truth, prediction and errors, in the class colours.

    Above each row: the patch, its share of pixels that are right and its mean IoU over the scored
    classes that its truth or prediction holds. Pixels whose truth is not a scored class count in
    neither and are marked.

    Args:
        images: (N, H, W, 3) uint8, red, green and blue.
        truths: (N, H, W) uint8 class indices.
        predictions: Likewise.
        ids: N names.
        nomenclature: The classes.
        title: A line above.

    Returns:
        A figure 9.6 inches wide and about 2.6 inches per patch high.

    Raises:
        ValueError: No patch, or shapes that do not fit together.
    """
    count = len(ids)
    classes, scored = nomenclature.classes, nomenclature.scored
    same = images.shape == (*truths.shape, 3) and predictions.shape == truths.shape
    if not count or not same or len(truths) != count:
        raise ValueError(
            f"{count} patches need images (N, H, W, 3) and two masks (N, H, W), not "
            f"{images.shape}, {truths.shape} and {predictions.shape}"
        )
    from matplotlib.colors import to_rgb

    legend = _legend(np.union1d(truths, predictions), classes, (truths >= scored).any())
    head, foot = 0.95, 0.16 + 0.25 * -(-len(legend) // 5)  # inches
    height = head + 2.58 * count + foot
    figure = _figure(9.6, height, title)
    tiles = figure.subplots(
        count, 4, squeeze=False,
        gridspec_kw={"left": 0.01, "right": 0.99, "bottom": foot / height,
                     "top": 1 - head / height, "wspace": 0.04, "hspace": 0.13},
    )  # fmt: skip
    palette = np.array([to_rgb(entry.colour) for entry in classes])
    for row, patch, image, truth, prediction in zip(
        tiles, ids, images, truths, predictions, strict=True
    ):
        errors = _errors(image, truth, prediction, scored)
        _draw_tiles(row, (image, palette[truth], palette[prediction], errors))
        caption = f"{patch}     {_patch_scores(truth, prediction, len(classes), scored)}"
        row[0].set_title(caption, loc="left", fontsize=9.5)
    for axes, name in zip(tiles[0], ("image", "truth", "prediction", "errors"), strict=True):
        axes.set_title(f"{name}\n", fontsize=11)  # the second line is the caption's
    _draw_legend(figure, legend)
    return figure


def _draw_tiles(row: Sequence[Axes], tiles: Sequence[npt.NDArray[Any]]) -> None:
    smoothings = ("antialiased", "nearest", "nearest", "antialiased")
    for axes, tile, smoothing in zip(row, tiles, smoothings, strict=True):
        axes.imshow(tile, interpolation=smoothing)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color("#888888")


def _errors(image: ByteArray, truth: ByteArray, prediction: ByteArray, scored: int) -> ByteArray:
    """Return the image in pale grey, its wrong pixels vermilion, unscored ones blue; (H, W, 3)."""
    from matplotlib.colors import to_rgb

    grey = 150 + image.mean(axis=2, keepdims=True) * (105 / 255)
    tile = np.repeat(grey, 3, axis=2)
    unscored = truth >= scored
    for where, colour in ((~unscored & (truth != prediction), _WRONG), (unscored, _UNSCORED)):
        # A quarter of the grey stays, so that what lies under an error can still be seen.
        tile[where] = 0.25 * tile[where] + 0.75 * 255 * np.array(to_rgb(colour))
    return tile.astype(np.uint8)


def _patch_scores(truth: ByteArray, prediction: ByteArray, classes: int, scored: int) -> str:
    """Return in words the share of right pixels and the mean IoU of a patch's scored pixels."""
    where = truth < scored
    if not where.any():
        return "no scored pixel"
    counts = confusion_matrix(truth[where], prediction[where], classes)
    right = np.trace(counts) / counts.sum()
    return f"{right:.0%} of pixels right,  mean IoU {float(miou(counts, scored)):.2f}"


def _legend(indices: ByteArray, classes: Sequence[LandCover], unscored: np.bool_) -> dict[str, str]:
    """Return the colours of a panel by name: of the classes that occur, and of errors."""
    legend = {classes[index].name: classes[index].colour for index in indices}
    legend["errors: wrong class"] = _WRONG
    return legend | ({"errors: truth not scored": _UNSCORED} if unscored else {})


def _draw_legend(figure: Figure, colours: dict[str, str]) -> None:
    from matplotlib.patches import Patch

    figure.legend(
        handles=[Patch(facecolor=colours[name], label=name, **_EDGE) for name in colours],
        loc="lower center", ncols=5, fontsize=9.5, frameon=False, borderaxespad=0.2,
        handlelength=1.4, handleheight=1.0, columnspacing=1.3,
    )  # fmt: skip
