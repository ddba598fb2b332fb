"""The verb `submit`: its words, its exit status, what it prints."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from flair2_exp.cli.verbs import VERBS
from flair2_exp.errors import ConfigError, DataError, UsageError
from tests.inference.outputs_run import trained

__all__ = ["trained"]  # a fixture


def test_a_submission_is_written_with_its_time_and_passes_its_check(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "submission.zip"
    assert VERBS["submit"]([str(trained), "--out", str(out), "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "4 predictions of 64 x 64 pixels" in text
    assert "FLAIR #2's has 16,050 patches of 512 x 512 pixels" in text
    assert "on this machine. The challenge allowed 14:52 on its organisers'" in text
    assert VERBS["submit"](["--check", str(out), "--ids", str(trained)]) == 0
    assert "sound, all 4 patches" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="is there already"):
        VERBS["submit"]([str(trained), "--out", str(out)])


def test_problems_are_printed_by_kind_and_give_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, ids = tmp_path / "x.zip", tmp_path / "ids.txt"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(30):
            archive.writestr(f"PRED_{number}.tif", b"")
        archive.writestr("\x1b[31mred", b"")
    ids.write_text("".join(f"{number}\n" for number in range(31)))
    assert VERBS["submit"](["--check", str(path), "--ids", str(ids)]) == 1
    text = capsys.readouterr().out
    assert "33 problems" in text
    assert "1 of 31 predictions are missing: PRED_30.tif" in text
    assert "PRED_0.tif and 29 more: cannot be read as a TIFF" in text
    assert "\x1b" not in text
    assert len(text.splitlines()) == 5


@pytest.mark.parametrize(("words", "message"), [
    ([], "name a RUN, or several"),
    (["run", "--ids", "x"], "--ids says what --check expects"),
    (["run", "--check", "x.zip"], "--check takes a zip alone"),
    (["run", "--batch-size", "0"], "invalid value for '--batch-size'"),
    (["run", "--tta", "flip"], "invalid value for '--tta': 'flip' is not one of"),
])  # fmt: skip
def test_words_that_do_not_go_together_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        VERBS["submit"](words)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.zip: there is no such file"):
        VERBS["submit"](["--check", str(tmp_path / "x.zip")])
    with pytest.raises(ConfigError, match="there is no such run"):
        VERBS["submit"]([str(tmp_path / "run"), "--out", str(tmp_path / "x.zip")])
