"""What killed processes and removed folders leave behind is set right; what is sound is kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from flair2_exp.engines.job import Submission
from flair2_exp.files import replacing
from flair2_exp.lifecycle.record import FINISHED, KILLED, RUNNING
from flair2_exp.locking import locked
from flair2_exp.sweeps.repair import faults_of_runs
from flair2_exp.tracking.store import Store
from tests.commands import answer
from tests.lifecycle.helpers import record_of
from tests.lifecycle.made import config_below, finished_folder
from tests.sweeps.tracked import state_in, tracked_run


class Killed(BaseException):
    """Stands for a process that ends between two instructions."""


def test_a_killed_run_is_closed_and_what_is_sound_is_kept(store: Store, root: Path) -> None:
    run = tracked_run(store, root / "outputs" / "killed", status=RUNNING, writer=True)
    run_id = record_of(run.path).run_id
    run.checkpoints.mkdir()
    run.last.write_bytes(b"sound")
    run.writing.write_bytes(b"half")
    torn = run.path / ".metrics.json.0123abcd"
    torn.write_bytes(b"{")
    asked = answer("repair")
    assert (asked.status, "add --yes" in asked.err) == (2, True)
    for words in ("RUNNING by its record", "left half written", "RUNNING in MLflow"):
        assert words in asked.out
    assert record_of(run.path).status == RUNNING
    done = answer("repair", "--yes")
    assert done.status == 0, done
    assert "3 of 3 done" in done.out
    assert record_of(run.path).status == KILLED
    assert record_of(run.path).end > 2_000_000
    assert state_in(store, run_id) == (KILLED, "active")
    assert run.last.read_bytes() == b"sound"
    assert not run.writing.exists()
    assert not torn.exists()
    assert answer("repair").out == "Nothing to repair.\n"


def test_an_mlflow_run_gets_the_status_that_its_folder_has(store: Store, root: Path) -> None:
    run = tracked_run(store, root / "outputs" / "sent", status=RUNNING, writer=True)
    record = record_of(run.path)
    record.finish(FINISHED)
    record.write(run)
    run.metrics.write_text(json.dumps({"test/miou": 0.5}))
    assert answer("repair", "--yes").status == 0
    assert state_in(store, record.run_id)[0] == FINISHED


def test_mlflow_runs_whose_folder_is_gone_are_removed(store: Store, root: Path) -> None:
    gone = tracked_run(store, root / "outputs" / "gone")
    kept = tracked_run(store, root / "outputs" / "kept")
    ids = [record_of(each.path).run_id for each in (gone, kept)]
    shutil.rmtree(gone.path)
    done = answer("repair", "--yes")
    assert "which is gone: remove it from MLflow" in done.out
    assert [state_in(store, each)[1] for each in ids] == ["deleted", "active"]


def test_runs_at_work_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_below(tmp_path)
    held = finished_folder(tmp_path / "held", config, status=RUNNING)
    live = finished_folder(tmp_path / "live", config, status=RUNNING)
    Submission("slurm", "1").write(live)
    monkeypatch.setattr(
        "flair2_exp.sweeps.repair.watching.states_of", lambda *_, **__: {"job": "queued"}
    )
    with locked(held.path):
        assert not list(faults_of_runs([tmp_path]))
    assert len(list(faults_of_runs([tmp_path]))) == 1  # what was held is not any more


def test_one_that_begins_while_the_question_is_asked_is_left(tmp_path: Path) -> None:
    run = finished_folder(tmp_path / "run", config_below(tmp_path), status=RUNNING)
    (fault,) = faults_of_runs([tmp_path])
    assert fault.mend is not None
    with locked(run.path):
        assert "in use by process" in fault.mend()
    record = record_of(run.path)
    record.finish(FINISHED)
    record.write(run)
    assert fault.mend() == "it has changed meanwhile"
    assert record_of(run.path).status == FINISHED


def test_a_record_that_cannot_be_read_is_named_with_what_removes_it(tmp_path: Path) -> None:
    run = finished_folder(tmp_path / "run", config_below(tmp_path))
    run.record.write_text("{")
    (fault,) = faults_of_runs([tmp_path])
    assert f"flair2-exp rm {run}" in fault.text
    assert fault.mend is None


def test_half_written_files_are_those_that_a_killed_writer_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished_folder(tmp_path / "run", config_below(tmp_path))
    names: list[str] = []

    def dies() -> None:
        with replacing(run.metrics) as fresh:
            fresh.write_text("half")
            names.append(fresh.name)
            raise Killed

    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # nothing tidies up
    with pytest.raises(Killed):
        dies()
    (fault,) = faults_of_runs([tmp_path])
    assert names[0] in fault.text
