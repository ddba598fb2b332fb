"""What is kept of a failed job: its reason, its traceback, its line in the report."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shlex
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from flair2_exp.errors import DataError
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import FAILED
from flair2_exp.report import write
from flair2_exp.sweeps import failures
from flair2_exp.sweeps.ablation import SweepFailedError
from flair2_exp.sweeps.failures import Traced, mark_failed
from tests.commands import answer
from tests.report.made_runs import make_folder
from tests.sweeps.made import MadeSweep, config_of, ends, works
from tests.sweeps.plans import planned

NO_REPORT = "sweep.report=false"


def test_a_bugs_traceback_lies_in_the_jobs_folder_until_the_job_is_done(made: MadeSweep) -> None:
    def fails(seed: int, folder: Path) -> None:
        if seed == 2:
            ends(seed, folder, FAILED, "ValueError: a bug")
            raise ValueError("a bug of http://me:hunter2@host")
        if seed == 3:
            raise DataError("refused")
        ends(seed, folder)

    with pytest.raises(SweepFailedError) as failure:
        made.run(fails, NO_REPORT)
    inside, beside = made.folder / "seed=2" / "error.txt", made.folder / "seed=3.error.txt"
    assert f"    {inside}\n" in str(failure.value)
    assert str(failure.value).endswith(f"    {beside}")
    text = inside.read_text()
    assert "in fails" in text
    assert "hunter2" not in text
    assert "DataError: refused" in beside.read_text()
    made.run(works, NO_REPORT)
    assert not inside.exists()
    assert not beside.exists()


def test_an_error_about_a_file_whose_name_is_not_text_does_not_end_the_sweep(
    made: MadeSweep,
) -> None:
    def fails(seed: int, folder: Path) -> None:
        if seed == 1:
            raise FileNotFoundError(os.fsdecode(b"caf\xe9.tif"))
        ends(seed, folder)

    with pytest.raises(SweepFailedError, match="1 of the sweep's jobs"):
        made.run(fails, NO_REPORT)
    assert "caf\\udce9.tif" in (made.folder / "seed=1.error.txt").read_text()


def test_a_full_disk_does_not_end_the_sweep(
    made: MadeSweep, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fails(seed: int, folder: Path) -> None:
        if seed == 1:
            raise DataError("refused")
        ends(seed, folder)

    monkeypatch.setattr(failures, "write_text", full)
    with pytest.raises(SweepFailedError, match="1 of the sweep's jobs"):
        made.run(fails, NO_REPORT)
    assert "No space left" in caplog.text


def test_a_job_outside_of_the_sweeps_folder_has_its_traceback_beside_the_others(
    tmp_path: Path,
) -> None:
    (job,) = planned(tmp_path, "seed=1")
    job.folder = RunFolder(tmp_path / "elsewhere" / "job")
    job.root.mkdir(parents=True)
    marked: dict[int, failures.Failure] = {}
    mark_failed(job, DataError("refused"), marked)
    assert marked[0].log.parent == job.root
    assert marked[0].log.read_text() == "flair2_exp.errors.DataError: refused\n"


def test_a_traceback_comes_back_from_another_process() -> None:
    def fails(_: DictConfig) -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug") as raised:
        Traced(fails)(OmegaConf.create())
    came = pickle.loads(pickle.dumps(raised.value))
    assert came.__traceback__ is None
    assert "in fails" in vars(came)["flair2_traceback"]


def done_and_refused(seed: int, folder: Path) -> None:
    """Runs with counts for a report; the first is refused."""
    if seed == 1:
        raise DataError("the data are gone")
    name = config_of(seed, folder.parents[2]).name
    make_folder(folder.parent / "made", name, seed).path.rename(folder)
    ends(seed, folder)


def test_the_report_says_why_a_run_is_absent(made: MadeSweep) -> None:
    with pytest.raises(SweepFailedError):
        made.run(done_and_refused)
    report = json.loads((made.folder / "report" / "leaderboard.json").read_text())
    assert report["absent"] == [
        {"row": "utt", "seed": 1, "state": "failed", "reason": "the data are gone"}
    ]


def test_a_bug_in_the_report_does_not_hide_what_failed(
    made: MadeSweep, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(*_: object, **__: object) -> None:
        raise ZeroDivisionError("in the report")

    monkeypatch.setattr(write, "report_runs", breaks)
    with pytest.raises(SweepFailedError, match="the data are gone"):
        made.run(done_and_refused)
    assert "ZeroDivisionError: in the report" in caplog.text


def scored(seed: int, folder: Path) -> None:
    """Finish, with counts for a report."""
    name = config_of(seed, folder.parents[2]).name
    make_folder(folder.parent / "made", name, seed).path.rename(folder)
    ends(seed, folder)


@pytest.mark.parametrize(
    "error",
    [
        UnicodeEncodeError("ascii", "Δ", 0, 1, "no such letter"),
        OSError(errno.ENOSPC, "No space left on device"),
        ZeroDivisionError("a bug"),
        DataError("the report cannot be written to /full"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_no_report_fails_the_sweep(
    error: Exception,
    made: MadeSweep,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def breaks(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(write, "report_runs", breaks)
    made.run(works)
    assert f"no report: {error}" in caplog.text
    assert (type(error) is ZeroDivisionError) == ("Traceback" in caplog.text)


def test_the_command_that_a_lost_report_names_makes_it(
    made: MadeSweep, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(write, "image", lambda *_: 1 / 0)
        made.run(scored)
    program, *words = shlex.split(caplog.text.partition("is corrected: ")[2].splitlines()[0])
    assert program == "flair2-exp"
    assert answer(*words).status == 0
    assert (made.folder / "report" / "leaderboard.html").is_file()
