from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands import Answer, answer
from tests.report.made_runs import make_folder, make_runs


def report(*arguments: str) -> Answer:
    return answer("report", *arguments)


def test_the_verb_reports_run_folders(tmp_path: Path) -> None:
    make_runs(tmp_path / "sweep", {"unet": 1.0, "utt": 1.5}, seeds=2, areas=6)
    done = report(
        str(tmp_path / "sweep"), "--format", "md,terminal", "--resamples", "200",
        "--out", str(tmp_path / "out"), "--baseline", "utt",
    )  # fmt: skip
    assert done.status == 0, done.err
    assert "unet − utt" in done.out
    assert (tmp_path / "out" / "leaderboard.md").is_file()


def test_the_verb_prints_what_a_program_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (run,) = make_runs(tmp_path / "sweep", {"unet": 1.0}, seeds=1, areas=6)
    report("sweep", "--resamples", "200", "--format", "json", "--out", "out")
    done = report("sweep", "--resamples", "200", "--json")
    printed = json.loads(done.out)
    stored = json.loads((tmp_path / "out" / "leaderboard.json").read_text())
    assert {**printed, "origin": []} == {**stored, "origin": []}  # but for the command
    assert printed["runs"][0]["folder"] == str(run.folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no run folder"),
        (["--tag", "x"], "--tag x is not KEY=VALUE"),
    ],
)
def test_the_verb_names_a_mistake_in_a_line(arguments: list[str], message: str) -> None:
    done = report(*arguments)
    assert done.status == 1
    assert done.err.startswith("flair2-exp: ")
    assert message in done.err
    assert "Traceback" not in done.err


def test_the_verb_splits_a_row_of_two_experiments_or_refuses_it(tmp_path: Path) -> None:
    one = make_folder(tmp_path / "runs", "unet", 1)
    two = make_folder(tmp_path / "runs", "unet", 2, aug__geometry="flips")
    for folder, geometry in ((one, "none"), (two, "flips")):
        record = json.loads(folder.record.read_text())
        record["deciding"] = {"aug.geometry": geometry, "seed": 1}
        folder.record.write_text(json.dumps(record))
    shown = (str(tmp_path / "runs"), "--resamples", "200")
    split, refused = report(*shown), report(*shown, "--strict")
    assert "unet (aug.geometry=flips)" in split.out
    assert refused.status == 1
    (line,) = refused.err.splitlines()
    assert line.startswith(
        "flair2-exp: row unet has runs of 2 experiments: aug.geometry (none; flips)."
    )
