from __future__ import annotations

import dataclasses
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from flair2_exp.nomenclature import CLASSES_13
from flair2_exp.report import figures
from flair2_exp.report.leaderboard import build_report
from flair2_exp.report.results import Report, ReportOptions
from flair2_exp.report.runs import RunSet
from tests.report.made_runs import changed, make_runs


def test_figures_are_pictures(written: tuple[Report, Path]) -> None:
    _, out = written
    for name in ("forest", "iou_by_class", "confusion", "learning_curves"):
        pixels = matplotlib.image.imread(out / f"{name}.png")
        assert min(pixels.shape[:2]) > 300
        assert pixels[..., :3].std() > 0.02
        tree = ElementTree.parse(out / f"{name}.svg")
        assert tree.getroot().tag == "{http://www.w3.org/2000/svg}svg"
        links = [value for one in tree.iter() for key, value in one.items() if "href" in key]
        assert all(link.startswith(("#", "data:")) for link in links)


def test_forest_shows_the_reports_intervals(written: tuple[Report, Path]) -> None:
    report, _ = written
    left, right = figures.forest(report).axes
    spans = [tuple(line.get_xdata()) for line in left.lines if len(line.get_xdata()) == 2]  # type: ignore[arg-type]
    for row in report.rows:
        assert (row.miou.low, row.miou.high) in spans
    drawn = [tuple(line.get_xdata()) for line in right.lines]  # type: ignore[arg-type]
    for row in report.rows[1:]:
        assert row.against_baseline is not None
        assert row.against_baseline.miou.shown in drawn


def test_classes_have_their_colours(written: tuple[Report, Path]) -> None:
    (axes,) = figures.iou_by_class(written[0]).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        one.name for one in CLASSES_13[:12]
    ]
    squares = [line for line in axes.lines if line.get_marker() == "s"]
    colours = {to_hex(line.get_color()) for line in squares if len(line.get_xdata()) == 1}  # type: ignore[arg-type]
    assert {one.colour for one in CLASSES_13[:12]} <= colours


def test_confusion_shows_shares_of_the_true_class(written: tuple[Report, Path]) -> None:
    report, _ = written
    axes = figures.confusion(report).axes
    first = np.asarray(axes[0].images[0].get_array())
    np.testing.assert_allclose(first.sum(axis=1), 100)
    assert axes[0].get_title(loc="left") == "unet"
    change = np.asarray(axes[2].images[0].get_array())
    second = np.asarray(axes[1].images[0].get_array())
    np.testing.assert_allclose(change, second - first)


def test_learning_curves_average_the_epochs_that_all_seeds_reached() -> None:
    curves = [[(1.0, 0.1), (2.0, 0.3), (3.0, 0.5)], [(1.0, 0.2), (2.0, 0.5)]]
    epochs, mean, low, high = figures._mean_curve(curves)
    assert epochs == [1.0, 2.0]
    assert mean == pytest.approx([0.15, 0.4])
    assert (low.tolist(), high.tolist()) == ([0.1, 0.3], [0.2, 0.5])


@pytest.mark.parametrize("more", [0, 12])
def test_nothing_is_cut_off_or_printed_over(tmp_path: Path, more: int) -> None:
    cells = [(flips, on) for flips in ("none", "flips") for on in ("false", "true")]
    names = [f"utt_raw_{flips}_metadata_{on}".ljust(26 + more, "x") for flips, on in cells]
    runs = [
        changed(run, settings={"aug.geometry": flips, "metadata.enabled": on})
        for run, (flips, on) in zip(
            make_runs(tmp_path, dict.fromkeys(names, 1.0), seeds=1), cells, strict=True
        )
    ]
    options = ReportOptions(factors=(), resamples=200)
    drawn = figures.figures(build_report(RunSet(tuple(runs)), options))
    assert set(drawn) >= {"forest", "effects", "confusion", "iou_by_class", "learning_curves"}
    for figure in drawn.values():
        renderer = FigureCanvasAgg(figure).get_renderer()
        inches = figure.get_tightbbox(renderer)
        width, height = figure.get_size_inches()
        assert 0 <= inches.x0 < inches.x1 <= width
        assert 0 <= inches.y0 < inches.y1 <= height
    left, right = (axes.get_tightbbox() for axes in drawn["forest"].axes)
    assert left.x1 < right.x0


def test_of_very_many_rows_the_baseline_and_the_best_are_drawn_and_it_is_said(
    written: tuple[Report, Path],
) -> None:
    report, _ = written
    rows = [
        dataclasses.replace(row, runs=tuple(changed(run, apart=f"lr={at}") for run in row.runs),
                            miou=dataclasses.replace(row.miou, value=at / 100))
        for at in range(45) for row in [report.rows[at % 3]]
    ]  # fmt: skip
    many = dataclasses.replace(report, rows=tuple(rows), baseline=rows[1].name)
    best = [row.name for row in rows[6:]]
    left, _ = figures.forest(many).axes
    names = [label.get_text().removesuffix(" *") for label in left.get_yticklabels()]
    assert names == [rows[1].name, *best]
    (heat, _) = figures.iou_by_class(many).axes
    assert [label.get_text() for label in heat.get_yticklabels()] == names
    curves = figures.learning_curves(many)
    assert curves is not None
    assert [axes.get_title(loc="left") for axes in curves.axes] == [names[0], *names[-11:]]
    said = "the baseline and the best 11 of 44 other rows; bold"
    assert said in curves.get_supxlabel()
