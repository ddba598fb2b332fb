from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.report.made_runs import make_folder, make_runs

ROOT = Path(__file__).resolve().parents[2]


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "leaderboard.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


def test_script_reports_run_folders(tmp_path: Path) -> None:
    make_runs(tmp_path / "sweep", {"unet": 1.0, "utt": 1.5}, seeds=2, areas=6)
    done = script(
        "--folders", str(tmp_path / "sweep"), "--format", "md,terminal", "--resamples", "200",
        "--out", str(tmp_path / "out"), "--baseline", "utt",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "unet − utt" in done.stdout
    assert (tmp_path / "out" / "leaderboard.md").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--folders", "nowhere"], "no run folder"),
        (["--tag", "x"], "--tag x is not KEY=VALUE"),
    ],
)
def test_script_names_a_mistake_in_a_line(arguments: list[str], message: str) -> None:
    done = script(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_script_splits_a_row_of_two_experiments_or_refuses_it(tmp_path: Path) -> None:
    one = make_folder(tmp_path / "runs", "unet", 1)
    two = make_folder(tmp_path / "runs", "unet", 2, aug__geometry="flips")
    for folder, geometry in ((one, "none"), (two, "flips")):
        record = json.loads(folder.record.read_text())
        record["deciding"] = {"aug.geometry": geometry, "seed": 1}
        folder.record.write_text(json.dumps(record))
    shown = ("--folders", str(tmp_path / "runs"), "--resamples", "200")
    split, refused = script(*shown), script(*shown, "--strict")
    assert "unet (aug.geometry=flips)" in split.stdout
    assert refused.returncode == 1
    (line,) = refused.stderr.splitlines()
    assert line.startswith("error: row unet has runs of 2 experiments: aug.geometry (none; flips).")
