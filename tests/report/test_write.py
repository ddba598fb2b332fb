from __future__ import annotations

import csv
import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from flair2_exp.errors import ConfigError, DataError
from flair2_exp.report import write
from flair2_exp.report.results import Report, ReportOptions
from flair2_exp.report.runs import RunSet
from flair2_exp.report.write import SCHEMA, report_runs
from tests.report.conftest import QUICK
from tests.report.made_runs import HOSTILE, as_cell, make_runs


def test_all_files_are_listed_and_there(written: tuple[Report, Path]) -> None:
    report, out = written
    names = {path.name for path in report.paths}
    drawn = {"forest", "iou_by_class", "confusion", "learning_curves"}  # no run kept a panel
    assert names == {f"{name}.{kind}" for name in drawn for kind in ("png", "svg")} | {
        "leaderboard.md", "leaderboard.csv", "iou_by_class.csv", "differences.csv",
        "conventions.csv", "miou_by_domain.csv", "not_compared.csv", "origin.csv", "training.csv",
        "runs.csv", "leaderboard.json", "leaderboard.html",
    }  # fmt: skip
    assert {path.name for path in out.iterdir()} == names  # no part of a file is left


def test_json_holds_the_report(written: tuple[Report, Path]) -> None:
    report, out = written
    content = json.loads((out / "leaderboard.json").read_text())
    assert content["schema"] == SCHEMA
    assert [row["row"] for row in content["rows"]] == ["unet", "utt", HOSTILE]
    assert content["rows"][0]["miou_value"] == report.rows[0].miou.value
    assert content["rows"][0]["scores"] == list(report.rows[0].scores)
    assert content["absent"] == [
        {"row": "utt", "seed": 3, "state": "failed", "reason": "exit status 1"}
    ]
    water = [each for each in content["differences"] if each["class"] == "water"]
    assert len(water) == 3
    assert water[0]["p"] is not None
    assert np.array(content["confusion"]["unet"]).sum() == report.rows[0].confusion.sum()
    assert content["comparisons"] == 3
    assert content["convention"] == "FLAIR #2 challenge"
    assert content["conventions"][1]["convention"] == "FLAIR-HUB"
    for key in content:
        assert re.search(rf"\b{key}\b", write.__doc__ or ""), f"{key} is not in the schema"


def test_csv_holds_unrounded_numbers(written: tuple[Report, Path]) -> None:
    report, out = written
    with (out / "leaderboard.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["row"] for line in lines] == ["unet", "utt", HOSTILE]
    assert float(lines[0]["miou_value"]) == report.rows[0].miou.value
    assert lines[1]["absent"] == "3 failed"
    assert lines[1]["seeds"] == "1; 2"
    with (out / "training.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["parameters"] == "24444381"
    assert lines[0]["published"] == ""
    with (out / "differences.csv").open(newline="") as file:
        differences = list(csv.DictReader(file))
    assert len(differences) == 3 * 13
    assert float(differences[0]["joint_p"]) == report.differences[0].miou.joint_p
    with (out / "conventions.csv").open(newline="") as file:
        conventions = list(csv.DictReader(file))
    assert len(conventions) == 3 * 4
    own = [line for line in conventions if line["own"] == "True"]
    assert [float(line["miou"]) for line in own] == pytest.approx(
        [row.miou.value for row in report.rows]
    )
    assert {line["convention"] for line in own} == {"FLAIR #2 challenge"}
    with (out / "iou_by_class.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 3 * 12


def test_same_report_gives_same_bytes(
    run_set: RunSet, written: tuple[Report, Path], tmp_path: Path
) -> None:
    again = report_runs(run_set, tmp_path, ("json", "csv", "svg"), QUICK)
    for path in again.paths:
        assert path.read_bytes() == (written[1] / path.name).read_bytes(), path.name


def test_report_of_many_rows_and_factors_is_drawn(tmp_path: Path) -> None:
    cells = [f"c{at:03b}" for at in range(8)]
    runs = make_runs(tmp_path / "runs", dict.fromkeys(cells, 1.0), seeds=1, areas=6)
    options = ReportOptions(factors=(), resamples=200)
    formats = ["png", "csv", "json", "md"]
    report = report_runs(RunSet(tuple(map(as_cell, runs))), tmp_path / "out", formats, options)
    names = {path.name for path in report.paths}
    assert {"effects.png", "iou_by_class.png", "factors.csv"} <= names
    content = json.loads((tmp_path / "out" / "leaderboard.json").read_text())
    effects = [each for each in content["factors"] if each["class"] == "mIoU"]
    assert len(effects) == 6
    assert len(content["factors"]) == 6 * 13
    assert effects[0]["seeds_freedom"] == 1
    assert effects[0]["seeds_low"] < effects[0]["value"] < effects[0]["seeds_high"]
    assert "## Factors" in (tmp_path / "out" / "leaderboard.md").read_text()


def test_report_without_curves_or_intervals_is_written(run_set: RunSet, tmp_path: Path) -> None:
    run = run_set.runs[0]
    counts = dataclasses.replace(
        run.counts, areas=run.counts.areas[:1], confusion=run.counts.confusion[:1]
    )
    record = dataclasses.replace(run.record, scores={})
    bare = dataclasses.replace(run, record=record, counts=counts, curves={})
    formats = ("md", "csv", "json", "png", "html")
    report = report_runs(RunSet((bare,)), tmp_path, formats, QUICK)
    assert report.rows[0].miou.low is None
    assert "learning_curves.png" not in {path.name for path in report.paths}
    content = json.loads((tmp_path / "leaderboard.json").read_text())
    assert content["rows"][0]["miou_low"] is None
    assert content["training"][0]["train_seconds"] is None


def test_unknown_format_is_refused_before_anything_is_written(
    run_set: RunSet, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="format pdf: expected one of terminal, md"):
        report_runs(run_set, tmp_path / "out", ["md", "pdf"])
    assert not (tmp_path / "out").exists()


def test_folder_that_cannot_be_written_is_named(run_set: RunSet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        report_runs(run_set, tmp_path / "file", ["csv"], QUICK)
