"""Two runs beside each other: the same numbers as a report of them, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flair2_exp.errors import ConfigError, DataError
from flair2_exp.report.comparison import compare, option_differences, save_curves
from flair2_exp.report.results import ReportOptions
from flair2_exp.tracking.tags import Tag
from tests.report.made_runs import make_arrays, make_folder

QUICK = ReportOptions(resamples=400)


def _iou(confusion: np.ndarray) -> np.ndarray:
    """By the definition: hits over all pixels that are or were called so."""
    summed = confusion.sum(axis=0).astype(float)
    hits = np.diagonal(summed)
    return hits / (summed.sum(axis=0) + summed.sum(axis=1) - hits)


def test_scores_and_differences_are_those_of_the_counts(tmp_path: Path) -> None:
    arrays = [make_arrays(1.0, row=0), make_arrays(1.6, row=1)]
    one = make_folder(tmp_path, "unet", 1, arrays[0])
    other = make_folder(tmp_path, "utt", 2, arrays[1], model__name="utt")
    compared = compare(one, other, QUICK)
    first, second = (_iou(each["confusion"]) for each in arrays)
    lines = {name: (a, b, d) for name, a, b, d in compared.scores}
    assert len(lines) == 1 + 12  # the 13th class is not scored
    for at, (a, b, d) in enumerate(list(lines.values())[1:]):
        assert a.value == pytest.approx(first[at])
        assert b.value == pytest.approx(second[at])
        assert d.value == pytest.approx(second[at] - first[at])
    miou = lines["mIoU"][2]
    assert miou.value == pytest.approx(second[:12].mean() - first[:12].mean())
    low, high = miou.shown
    assert low is not None and high is not None and low < miou.value < high  # noqa: PT018
    assert [row.name for row in compared.report.rows] == ["unet", "utt"]
    assert compared.options == {"model.name": ("unet", "utt"), "seed": (1, 2)}


def test_the_other_way_round_every_difference_has_the_other_sign(tmp_path: Path) -> None:
    one = make_folder(tmp_path, "a", 1, make_arrays(1.0, row=0))
    other = make_folder(tmp_path, "b", 1, make_arrays(1.2, row=1))
    there, back = compare(one, other, QUICK), compare(other, one, QUICK)
    for (_, _, _, d), (_, _, _, reverse) in zip(there.scores, back.scores, strict=True):
        assert d.value == pytest.approx(-(reverse.value or 0.0))


def test_runs_of_one_row_are_told_apart_by_their_seed(tmp_path: Path) -> None:
    runs = [make_folder(tmp_path, "unet", seed) for seed in (1, 2)]
    compared = compare(*runs, QUICK)
    assert [row.name for row in compared.report.rows] == ["unet seed 1", "unet seed 2"]
    assert option_differences(*runs) == {"seed": (1, 2)}


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    one = make_folder(tmp_path, "one", 1)
    others = {
        "test patches or labels": make_folder(tmp_path, "world", 1, make_arrays(world=5)),
        "data sets": make_folder(tmp_path, "data", 1, tags={Tag.DATASET: "flair2"}),
        "metric settings": make_folder(tmp_path, "metric", 1, tags={Tag.METRIC: "drop"}),
    }
    for kind, other in others.items():
        with pytest.raises(ConfigError, match=f"runs of different {kind}"):
            compare(one, other, QUICK)
    with pytest.raises(ConfigError, match="are one run"):
        compare(one, one, QUICK)
    with pytest.raises(DataError, match="has no score to compare"):
        compare(one, make_folder(tmp_path, "failed", 1, status="FAILED", error="no"), QUICK)


def test_curves_are_drawn_where_there_are_any(tmp_path: Path) -> None:
    one, other = (make_folder(tmp_path, "unet", seed) for seed in (1, 2))
    path = save_curves(compare(one, other, QUICK), tmp_path / "out")
    assert path is not None
    assert path.read_bytes().startswith(b"\x89PNG")
    for each in (one, other):
        each.history.write_text("epoch,train/loss\n1,0.5\n")
    assert save_curves(compare(one, other, QUICK), tmp_path / "none") is None
