"""Patches side by side: of each row those that its run has kept, by their names."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.report import figures
from flair2_exp.report.leaderboard import build_report
from flair2_exp.report.panels import panel_of
from flair2_exp.report.results import Report, ReportOptions
from flair2_exp.report.runs import RunSet
from tests.report.made_runs import make_runs


def keep(folder: Path, patches: list[str], predicted: int) -> None:
    """The panel that a run leaves: each truth is the class of the patch's last digit."""
    truths = np.stack([np.full((16, 16), int(each[-1]), np.uint8) for each in patches])
    np.savez_compressed(
        RunFolder(folder).panel, patch_ids=np.array(patches), truths=truths,
        images=np.zeros((len(patches), 8, 8, 3), np.uint8),
        predictions=np.full_like(truths, predicted),
    )  # fmt: skip


def report_of(tmp_path: Path) -> Report:
    runs = make_runs(tmp_path, {"unet": 1.0, "utt": 1.5, "utae": 0.5}, seeds=2, areas=4)
    return build_report(RunSet(tuple(runs)), ReportOptions(resamples=100))


def test_the_patches_that_all_rows_kept_stand_side_by_side(tmp_path: Path) -> None:
    report = report_of(tmp_path)
    keep(tmp_path / "unet" / "seed=1", ["p1", "p2", "p3", "p4", "p5"], predicted=2)
    keep(tmp_path / "utt" / "seed=1", ["p5", "p4", "p3", "p2"], predicted=4)
    panel = panel_of(report)
    assert panel is not None
    assert panel.patches == ("p2", "p4", "p5")  # evenly spaced ones of those in common
    assert [int(truth[0, 0]) for truth in panel.truths] == [2, 4, 5]
    assert [(run.row, run.seed) for run, _ in panel.predictions] == [("unet", 1), ("utt", 1)]
    assert {int(each[0, 0]) for each in panel.predictions[1][1]} == {4}
    figure = figures.panels(report)
    assert figure is not None
    tiles = np.array(figure.axes).reshape(3, 4)
    assert [axes.get_xlabel() for axes in tiles[0]] == ["p2", "", "100% right", "0% right"]
    assert tiles[0][3].get_title(loc="left") == "utt\nseed 1"


def test_a_damaged_panel_and_one_of_another_run_are_left_out(tmp_path: Path) -> None:
    report = report_of(tmp_path)
    assert panel_of(report) is None
    for row in ("unet", "utt"):
        keep(tmp_path / row / "seed=1", ["p1"], predicted=1)
    RunFolder(tmp_path / "unet" / "seed=1").panel.write_bytes(b"PK")
    record = RunFolder(tmp_path / "utt" / "seed=1").record
    record.write_text(record.read_text().replace('"run_id": ""', '"run_id": "another"'))
    assert panel_of(report) is None
    assert figures.panels(report) is None
