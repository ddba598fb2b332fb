"""The figures of a study."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from flair2_exp.optuna_sweeper.storage import open_storage
from flair2_exp.sweeps.study_figures import write_figures
from tests.sweeps.studies import made_result


def test_the_slice_figures_names_stand_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    drawn: dict[str, Figure] = {}

    def kept(self: Figure, path: Path, **_: Any) -> None:
        drawn[path.stem] = self
        path.touch()  # without plotly the page holds the images

    monkeypatch.setattr(Figure, "savefig", kept)
    study = optuna.create_study(storage=open_storage(str(tmp_path / "optuna.journal")))
    names = ("loss.label_smoothing", "optimizer.weight_decay", "utae.encoder_widths", "aug")
    for value in range(3):
        study.add_trial(
            optuna.create_trial(
                value=value,
                params=dict.fromkeys(names, value / 10),
                distributions=dict.fromkeys(names, optuna.distributions.FloatDistribution(0, 1)),
            )
        )
    result = replace(
        made_result(tmp_path, 0),
        study=study,
        objective=("loss",),
    )
    write_figures(result, tmp_path)
    figure = drawn["slice"]
    figure.canvas.draw()
    shown = [axes.title for axes in figure.axes if axes.get_title()]
    boxes = sorted((title.get_window_extent() for title in shown), key=lambda box: box.x0)
    assert {title.get_text() for title in shown} == set(names)
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
