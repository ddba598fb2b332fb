from __future__ import annotations

import dataclasses
from pathlib import Path

from flair2_exp.report.leaderboard import build_report
from flair2_exp.report.origins import (
    addresses,
    further_settings,
    origin,
    run_list,
    settings,
    training,
)
from flair2_exp.report.results import Report, ReportOptions
from flair2_exp.report.runs import RunSet, ScoredRun
from flair2_exp.tracking.tags import Tag
from tests.report.made_runs import changed, make_runs


def deciding(run: ScoredRun, **values: object) -> ScoredRun:
    """The run with what decided its result; `__` stands for a dot."""
    named = {name.replace("__", "."): value for name, value in values.items()}
    record = dataclasses.replace(run.record, deciding={"seed": run.seed, **named})
    return dataclasses.replace(run, record=record)


def reported(*runs: ScoredRun, **options: object) -> Report:
    return build_report(RunSet(runs), ReportOptions(resamples=100, **options))  # type: ignore[arg-type]


def test_options_that_differ_are_apart_from_those_that_one_row_alone_reads(tmp_path: Path) -> None:
    unet, utt = make_runs(tmp_path, {"unet": 1.0, "utt": 1.0}, seeds=1, areas=4)
    report = reported(
        deciding(unet, optimizer__lr=0.1, aug__probability=0.5),
        deciding(utt, optimizer__lr=0.2, aug__probability=0.5, utae__heads=16),
    )
    differing, further = settings(report), further_settings(report)
    assert differing is not None
    assert further is not None
    assert [*differing.cells] == [["optimizer.lr", "0.1", "0.2"]]
    assert [*further.cells] == [["utae.heads", "–", "16"]]
    assert further.second


def test_of_many_rows_the_options_are_the_columns(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, dict.fromkeys("abcdefgh", 1.0), seeds=1, areas=4)
    table = settings(reported(*(deciding(run, aug__noise=at) for at, run in enumerate(runs))))
    assert table is not None
    assert table.heads == ["row", "aug.noise"]
    assert len(table.cells) == 8


def test_it_says_command_commit_versions_data_metric_and_seeds(tmp_path: Path) -> None:
    tags = {Tag.COMMIT: "0123456789abcdef", Tag.PACKAGES: "python==3.11.9; torch==2.4.1"}
    one, two = make_runs(tmp_path, {"unet": 1.0}, seeds=2, areas=4)
    dirty = changed(two, tags={**tags, Tag.DIRTY: "true"})
    report = reported(changed(one, tags=tags), dirty, command="flair2-exp -m seed=1,2")
    facts = dict(origin(report).cells)
    assert facts["command"] == "flair2-exp -m seed=1,2"
    assert facts["commit"] == (
        "0123456789ab (1 run); 0123456789ab with uncommitted changes (1 run)"
    )
    assert facts["packages"] == tags[Tag.PACKAGES]
    assert facts["data set"].startswith("sample")
    assert facts["mIoU"].startswith("FLAIR #2 challenge: IoU = TP / (TP + FP + FN)")
    assert facts["seeds"] == "1, 2"


def test_epochs_are_counted_from_1_and_stopping_is_named(tmp_path: Path) -> None:
    (run,) = make_runs(tmp_path, {"unet": 1.0}, seeds=1, areas=4)
    scores = {**run.record.scores, "train/epochs": 8.0, "best/epoch": 8.0}
    run = dataclasses.replace(run, record=dataclasses.replace(run.record, scores=scores))
    stops = {"trainer.max_epochs": "100", "callbacks.early_stopping.patience": "30",
             "callbacks.best.monitor": "val/loss"}  # fmt: skip
    table = training(reported(changed(run, settings=stops)))
    cells = dict(zip(table.heads, table.cells[0], strict=True))
    assert (cells["epochs"], cells["tested epoch"]) == ("8", "8")
    assert cells["stops"] == "at 100, after 30 without gain"
    assert table.about["tested epoch"].endswith("the best by val/loss")


def test_links_lead_to_folders_that_are_there_and_to_a_servers_runs(tmp_path: Path) -> None:
    one, two = make_runs(tmp_path / "sweep", {"a b": 1.0}, seeds=2, areas=4)
    record = dataclasses.replace(one.record, store="https://mlflow.example/", run_id="12ab")
    away = dataclasses.replace(two, folder=tmp_path / "gone")
    report = reported(dataclasses.replace(one, record=record), away)
    links = addresses(report, str(tmp_path / "sweep" / "report"))
    assert links == {
        str(one.folder): "../a%20b/seed%3D1",
        "12ab": "https://mlflow.example/#/runs/12ab",
    }
    assert len(run_list(report).cells) == 2
