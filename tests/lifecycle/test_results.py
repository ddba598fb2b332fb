"""What the end of a run says of its scores."""

from __future__ import annotations

from pathlib import Path

import pytest

from flair2_exp.lifecycle.experiment import objective
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.results import SYNTHETIC, result_table
from tests.configs import compose_config
from tests.lifecycle.made import SCORES

MEASURED = {**SCORES, "best/epoch": 3.0, "train/epochs": 5.0, "best/val/loss": 0.25,
            "test/patches": 4.0, "test/iou/forest": 0.1}  # fmt: skip
ONE_CLASS = {name: each for name, each in MEASURED.items() if name != "test/iou/forest"}


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("seed=1", "epoch 3 of 5, best by val/loss (0.2500), not by objective=val/miou"),
        ("objective=val/loss", "epoch 3 of 5, best by val/loss (0.2500)"),
        ("callbacks=best_miou", "epoch 3 of 5, best by val/miou (0.4000)"),
    ],
)
def test_the_table_says_which_epoch_was_tested_and_why(override: str, line: str) -> None:
    shown = result_table(
        compose_config(override), RunFolder(Path("run")), MEASURED, ""
    ).splitlines()
    assert f"tested    {line}" in shown
    assert "patches   4 tested" in shown
    assert "results   run" in shown


def test_scores_of_one_patch_or_one_class_are_called_that() -> None:
    config = compose_config("dataset=sample")
    folder = RunFolder(Path("run"))
    for metrics, words in (
        ({**MEASURED, "test/patches": 1.0}, "One test patch: its score says nothing about others."),
        (ONE_CLASS, "Only water is in truth and prediction."),
    ):
        assert words in result_table(config, folder, metrics, "")
        assert SYNTHETIC in result_table(config, folder, metrics, "")
    assert "Only" not in result_table(config, folder, MEASURED, "")


def test_the_ui_is_named_as_it_is_reached_from_anywhere() -> None:
    folder = RunFolder(Path("run"))
    local = result_table(compose_config(), folder, MEASURED, "1" * 32)
    assert local.endswith("to look at it: flair2-exp ui")
    served = result_table(
        compose_config("tracking.uri=http://host:5000"), folder, MEASURED, "1" * 32
    )
    assert served.endswith("to look at it: http://host:5000")


def test_an_objective_of_validation_is_that_of_the_tested_checkpoint() -> None:
    metrics = {"val/miou": 0.1, "best/val/miou": 0.4}
    assert objective(compose_config(), metrics) == 0.4
    assert objective(compose_config(), {"val/miou": 0.1}) == 0.1
