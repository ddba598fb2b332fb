"""What a run's folder says of its start."""

from __future__ import annotations

from pathlib import Path

import pytest

from flair2_exp.engines.job import Submission, code_digest
from flair2_exp.lifecycle.folder import RunFolder


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    written = Submission("slots", "12", "sweep/row/seed=1", ["--run", "seed=1"], "here", {"a": [1]})
    written.write(folder)
    assert Submission.read(folder) == written
    assert written.code == code_digest()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"engine": "slots"}', "null", "\x00"])
def test_a_torn_or_foreign_file_says_nothing(tmp_path: Path, text: str) -> None:
    folder = RunFolder(tmp_path)
    folder.job.write_text(text)
    assert Submission.read(folder) is None


def test_credentials_of_the_command_are_not_written(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    uri = "tracking.uri=https://me:hunter2@mlflow.example"
    Submission("slots", "1", command=["--run", uri, "seed=1"]).write(folder)
    assert "hunter2" not in folder.job.read_text()
    assert "seed=1" in folder.job.read_text()
