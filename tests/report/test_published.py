"""Published figures stand beside runs of their own settings, test set and convention alone."""

from __future__ import annotations

import dataclasses
import functools

import pytest

from flair2_exp.config.fields import plain
from flair2_exp.report.leaderboard import build_report
from flair2_exp.report.published import PODIUM, published_row
from flair2_exp.report.results import ReportOptions
from flair2_exp.report.runs import RunSet, ScoredRun
from flair2_exp.report.sentences import notes
from flair2_exp.report.tables import leaderboard, tables
from flair2_exp.score import Convention
from flair2_exp.tracking.tags import Tag
from flair2_exp.values import flatten, render
from tests.configs import compose_config
from tests.report.made_runs import changed, make_runs

MEANS = {
    "unet": 0.5467,
    "unet_metadata_aug": 0.5517,
    "utt": 0.5490,
    "utt_cloudfree_monthly": 0.5580,
    "utt_cloudfree_monthly_aug": 0.5623,
}
"""Of the leaderboard's experiments."""


@functools.cache
def settings_of(experiment: str, *overrides: str) -> dict[str, str]:
    """The config that a run of one of the leaderboard's experiments leaves."""
    data = ("dataset=flair2", "dataset.root=somewhere")
    config = compose_config(f"experiment=leaderboard/{experiment}", *data, *overrides)
    return {name: render(value) for name, value in flatten(plain(config)).items()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ScoredRun:
    return make_runs(tmp_path_factory.mktemp("runs"), {"row": 1.0}, seeds=1, areas=4)[0]


def real(run: ScoredRun, experiment: str, *overrides: str) -> ScoredRun:
    """The run as if it were one of this experiment, on the real, whole test set."""
    settings = settings_of(experiment, *overrides)
    counts = dataclasses.replace(run.counts, patches=16_050)
    metric = f"13 classes, other pixels {settings['metric.other_pixels']}"
    tags = {Tag.DATASET: "flair2", Tag.METRIC: metric, Tag.ROW: experiment}
    return dataclasses.replace(changed(run, tags=tags, counts=counts), settings=settings)


@pytest.mark.parametrize("experiment", MEANS)
def test_each_experiment_of_the_leaderboard_has_its_figures(
    made: ScoredRun, experiment: str
) -> None:
    row = published_row(real(made, experiment))
    assert row is not None
    assert (row.name, row.mean) == (experiment, MEANS[experiment])


@pytest.mark.parametrize(
    "change",
    ["optimizer=adamw", "optimizer.lr=0.01", "+optimizer.options.momentum=0.9", "scheduler=cosine",
     "data.batch_size=5", "trainer.devices=2", "trainer.max_epochs=50",
     "callbacks.early_stopping.patience=5", "callbacks=ema",
     "model.freeze_encoder=1", "optimizer.encoder_lr_factor=0.1", "optimizer.layer_decay=0.9",
     "callbacks=best_miou", "loss=focal", "loss.class_weights.other=1",
     "+loss.class_weights.water=2", "loss.satellite=0.5", "loss.satellite_class_weights=as_aerial",
     "model.encoder=resnet50", "model.encoder_weights=null", "data.bands=[red,green,blue]",
     "aug=d4", "aug.probability=0.9", "aug.brightness=0.1", "metric.other_pixels=drop",
     "s2_preproc.monthly=false", "trainer.limit_train_batches=9", "data.classes=19"],
)  # fmt: skip
def test_a_run_of_other_settings_has_none(made: ScoredRun, change: str) -> None:
    assert published_row(real(made, "utt_cloudfree_monthly_aug", change)) is None


def test_two_devices_of_five_patches_make_the_published_batch(made: ScoredRun) -> None:
    assert published_row(real(made, "unet", "trainer.devices=2", "data.batch_size=5")) is not None


def test_a_run_of_another_test_set_has_none(made: ScoredRun) -> None:
    run = real(made, "unet")
    fewer = dataclasses.replace(run.counts, patches=16_049)
    assert published_row(dataclasses.replace(run, counts=fewer)) is None
    assert published_row(changed(run, tags={Tag.DATASET: "sample"})) is None


def test_a_figure_says_where_it_is_from_and_what_it_is(made: ScoredRun) -> None:
    row = published_row(real(made, "utt_cloudfree_monthly_aug"))
    assert row is not None
    assert [(each.value, each.kind, each.deviation) for each in row.figures] == [
        (0.5758, "best", None), (0.5623, "mean", 0.0056),
    ]  # fmt: skip
    for each in (*row.figures, *PODIUM):
        assert each.source
        assert each.date is None  # the sources at hand give none
        assert (each.convention, each.split) == (Convention.CHALLENGE, "test, official")


def test_the_table_shows_figures_beside_their_convention(made: ScoredRun) -> None:
    runs = RunSet((real(made, "utt_cloudfree_monthly"), real(made, "unet", "optimizer.lr=0.01")))
    report = build_report(runs, ReportOptions(resamples=100))
    table = leaderboard(report)
    assert "mIoU (FLAIR #2 challenge) ± std" in table.heads
    assert [each["published_mean"] for each in table.records] == [0.5580, None]
    assert table.records[0]["published_convention"] == "FLAIR #2 challenge"
    (note,) = (note for note in notes(report) if note.startswith("Published"))
    assert "FLAIR #2 challenge convention, official test split" in note


def test_counts_without_other_pixels_give_no_score_that_needs_them(made: ScoredRun) -> None:
    run = real(made, "unet", "metric.other_pixels=drop")
    confusion = run.counts.confusion.copy()
    confusion[:, 12] = 0
    counts = dataclasses.replace(run.counts, confusion=confusion)
    runs = RunSet((dataclasses.replace(run, counts=counts),))
    report = build_report(runs, ReportOptions(resamples=100))
    named = {table.name: table for table in tables(report)}
    rows, conventions = named["rows"], named["conventions"]
    assert "mIoU (other pixels dropped) ± std" in rows.heads
    assert not any(head.startswith("published") for head in rows.heads)
    lost = [each["convention"] for each in conventions.records if each["miou"] is None]
    assert lost == ["FLAIR #2 challenge", "GEO-Bench-2"]
    (own,) = (each for each in conventions.records if each["own"])
    assert own["convention"] == "other pixels dropped"
    assert own["miou"] == pytest.approx(report.rows[0].miou.value)


def test_neither_ensembles_nor_test_time_augmentation_stand_beside_published_figures(
    made: ScoredRun,
) -> None:
    experiment = "utt_cloudfree_monthly_aug"
    run = real(made, experiment)
    assert published_row(run) is not None
    assert published_row(changed(run, tags={**run.record.tags, Tag.MEMBERS: "utt seed 1"})) is None
    assert published_row(real(made, experiment, "test_time=flips")) is None
    older = {n: text for n, text in run.settings.items() if not n.startswith("test_time.")}
    assert published_row(dataclasses.replace(run, settings=older)) is not None
