from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from flair2_exp.nomenclature import FLAIR_13, FLAIR_19
from flair2_exp.tracking import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def texts(figure: Figure) -> list[str]:
    """All that is written on a figure, where it is neither empty nor hidden."""
    from matplotlib.text import Text

    shown: Iterable[Text] = figure.findobj(Text)  # type: ignore[assignment]
    return [each.get_text().strip() for each in shown if each.get_text() and each.get_visible()]


def test_the_matrix_shows_shares_of_rows_and_the_iou_of_scored_classes() -> None:
    counts = np.diag(np.full(13, 30))
    counts[0] = 0
    counts[0, :3] = (50, 30, 20)
    counts[8] = 0  # a class that is in neither
    words = texts(figures.confusion(counts, FLAIR_13, title="U-T&T"))
    assert {"50", "30", "20", "100", "U-T&T", "no pixels counted", "absent", "not scored"} <= set(
        words
    )
    assert words.count("0.50") == 2  # building 50/100; pervious surface 30/(30+30)
    assert "0.60" in words  # impervious surface 30/(30+20)
    assert f"building  {100 * 100 / 430:.1f} %" in words
    mean = (0.5 + 0.5 + 0.6 + 8) / 11
    assert f"IoU   (dashed: mean {mean:.3f})" in words


def test_an_empty_matrix_and_all_nineteen_classes_can_be_drawn(tmp_path: Path) -> None:
    figure = figures.confusion(np.zeros((19, 19), int), FLAIR_19)
    assert texts(figure).count("no pixels counted") == 19
    figure.savefig(tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").stat().st_size > 10_000


def test_a_title_is_shown_as_it_is() -> None:
    title = r"cost$\frac$ a$b_$c"
    mask = np.zeros((1, 16, 16), np.uint8)
    image = np.zeros((1, 16, 16, 3), np.uint8)
    for figure in (
        figures.confusion(np.eye(13), FLAIR_13, title=title),
        figures.panel(image, mask, mask, ["P"], FLAIR_13, title=title),
    ):
        assert title in texts(figure)
        pixels(figure)  # where matplotlib would read a formula


def pixels(figure: Figure) -> np.ndarray:
    """The drawn figure, uint8 (H, W, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def centres(figure: Figure) -> list[tuple[int, int, int]]:
    """The colour in the middle of each tile, row by row."""
    drawn = pixels(figure)
    colours = []
    for axes in figure.axes:
        box = axes.get_window_extent()
        row, column = drawn.shape[0] - (box.y0 + box.y1) / 2, (box.x0 + box.x1) / 2
        red, green, blue = drawn[int(row), int(column)]
        colours.append((int(red), int(green), int(blue)))
    return colours


def test_the_panel_shows_image_truth_prediction_and_errors_in_their_colours() -> None:
    images = np.full((3, 16, 16, 3), 100, np.uint8)
    truths = np.zeros((3, 16, 16), np.uint8)  # building: #db0e9a
    predictions = truths.copy()
    predictions[1] = 4  # water: #1553ae
    truths[2] = 12  # other
    figure = figures.panel(images, truths, predictions, ["P1", "P2", "P3"], FLAIR_13)
    grey, building, water, other = (100,) * 3, (0xDB, 0x0E, 0x9A), (0x15, 0x53, 0xAE), (0,) * 3
    pale = int(150 + 100 * 105 / 255)
    wrong, unscored = (
        tuple(int(0.25 * (150 + 100 * 105 / 255) + 0.75 * part) for part in colour)
        for colour in ((213, 94, 0), (86, 180, 233))
    )
    expected = [
        *(grey, building, building, (pale,) * 3),
        *(grey, building, water, wrong),
        *(grey, other, building, unscored),
    ]
    for colour, target in zip(centres(figure), expected, strict=True):
        assert np.allclose(colour, target, atol=2)
    words = texts(figure)
    assert {"image", "truth", "prediction", "errors"} <= set(words)
    assert {"building", "water", "other", "errors: wrong class"} <= set(words)
    assert "coniferous" not in words  # the legend holds what occurs
    assert any("P1" in text and "100% of pixels right" in text for text in words)
    assert any("P2" in text and "mean IoU 0.00" in text for text in words)
    assert any("P3" in text and "no scored pixel" in text for text in words)


def test_the_caption_scores_a_patch_over_its_scored_pixels() -> None:
    truth = np.array([[[0, 0, 0, 1], [1, 1, 1, 12]]], np.uint8)
    prediction = np.array([[[0, 0, 1, 1], [1, 1, 1, 0]]], np.uint8)
    image = np.zeros((1, 2, 4, 3), np.uint8)
    words = texts(figures.panel(image, truth, prediction, ["P"], FLAIR_13))
    # 6 of 7 right; IoU 2/3 and 4/5
    assert any("86% of pixels right" in text and "mean IoU 0.73" in text for text in words)


@pytest.mark.parametrize(
    ("images", "masks", "ids"),
    [
        ((0, 4, 4, 3), (0, 4, 4), []),
        ((1, 4, 4), (1, 4, 4), ["P"]),
        ((1, 4, 4, 3), (2, 4, 4), ["P"]),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    images: tuple[int, ...], masks: tuple[int, ...], ids: list[str]
) -> None:
    mask = np.zeros(masks, np.uint8)
    with pytest.raises(ValueError, match="patches need"):
        figures.panel(np.zeros(images, np.uint8), mask, mask, ids, FLAIR_13)


def test_a_matrix_of_another_nomenclature_is_refused() -> None:
    with pytest.raises(ValueError, match="13 classes"):
        figures.confusion(np.zeros((19, 19)), FLAIR_13)


def test_drawing_leaves_matplotlibs_global_state_and_torch_alone() -> None:
    code = """
import sys
import numpy as np
from flair2_exp.nomenclature import FLAIR_13
from flair2_exp.tracking import figures
assert "matplotlib" not in sys.modules
figures.confusion(np.eye(13), FLAIR_13)
print(sorted({"matplotlib.pyplot", "torch", "lightning", "mlflow"} & set(sys.modules)))
"""
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"
