"""Runs and sweeps are removed with what MLflow has of them, and nothing else is."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from flair2_exp.errors import ConfigError, TrackingError
from flair2_exp.lifecycle.folder import SWEEP_CONFIG
from flair2_exp.locking import locked
from flair2_exp.sweeps.parent import Notes
from flair2_exp.sweeps.removal import removal_of
from flair2_exp.tracking.store import Store
from tests.commands import answer
from tests.lifecycle.helpers import record_of
from tests.sweeps.tracked import state_in, tracked_run


def _artifacts(store: Store, run_id: str) -> Path:
    run = store.find(run_id)
    assert run is not None
    return Path(unquote(urlsplit(run.info.artifact_uri).path))


def test_a_run_goes_with_its_mlflow_run_and_its_artifacts(store: Store, root: Path) -> None:
    gone = tracked_run(store, root / "outputs" / "gone" / "time")
    kept = tracked_run(store, root / "outputs" / "kept" / "time")
    ids = {each: record_of(each.path).run_id for each in (gone, kept)}
    places = {each: _artifacts(store, run_id) for each, run_id in ids.items()}
    assert answer("rm", str(gone.path), "--yes").status == 0
    assert not gone.path.parent.exists()  # of that name there is no other
    assert (root / "outputs").is_dir()
    assert state_in(store, ids[gone])[1] == "deleted"
    assert not places[gone].exists()
    assert kept.path.is_dir()
    assert state_in(store, ids[kept])[1] == "active"
    assert (places[kept] / "note.txt").is_file()


def test_a_sweep_goes_with_its_runs_and_its_own_mlflow_run(store: Store, root: Path) -> None:
    sweep = root / "multirun" / "it"
    parent = tracked_run(store, root / "outputs" / "stands for the parent")
    parent_id = record_of(parent.path).run_id
    jobs = [tracked_run(store, sweep / str(each), parent=parent_id) for each in range(2)]
    (sweep / SWEEP_CONFIG).write_text("name: flair2_exp\n")
    Notes("it", parent_run_id=parent_id, store=store.address, folder=str(sweep)).write(sweep)
    removal = removal_of("it")
    ids = [parent_id, *(record_of(each.path).run_id for each in jobs)]
    assert removal.runs == 2
    assert sorted(*removal.mlflow_runs.values()) == sorted(ids)
    removal.remove()
    assert not sweep.exists()
    assert {state_in(store, each)[1] for each in ids} == {"deleted"}


def test_what_runs_or_lies_elsewhere_is_refused(store: Store, root: Path, tmp_path: Path) -> None:
    run = tracked_run(store, root / "outputs" / "held")
    with locked(run.path):
        shown = answer("rm", str(run.path), "--yes")
    assert (shown.status, "in use by process" in shown.err) == (1, True)
    elsewhere = tracked_run(store, tmp_path / "outputs" / "mine")
    (root / "outputs" / "link").symlink_to(elsewhere.path)
    (root / "outputs" / "notes").mkdir()
    for word, message in {
        str(elsewhere.path): "nothing outside of them is removed",
        str(root / "outputs" / "link"): "nothing outside of them is removed",
        str(root / "outputs"): "holds all results",
        str(root / "outputs" / "notes"): "is not the folder of a run or a sweep",
        "nowhere": "no such folder, and no sweep of this name",
        ".": "no such folder, and no sweep of this name",
    }.items():
        with pytest.raises(ConfigError, match=message):
            removal_of(word)
    assert run.path.is_dir()
    assert elsewhere.path.is_dir()


def test_nobody_to_ask_removes_nothing(store: Store, root: Path) -> None:
    run = tracked_run(store, root / "outputs" / "asked")
    shown = answer("rm", str(run.path))
    assert (shown.status, "add --yes" in shown.err) == (2, True)
    assert run.path.is_dir()


def test_a_store_that_does_not_take_it_leaves_the_folder(
    store: Store, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tracked_run(store, root / "outputs" / "refused")
    removal = removal_of(str(run.path))
    assert store.folder is not None

    def fails(*_: object, **__: object) -> None:
        raise TrackingError("MLflow (…) failed at looking for the run: database is locked.\nMore.")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "find", fails)
        with pytest.raises(TrackingError, match=r"database is locked\.\n.*is still there"):
            removal.remove()
    assert run.path.is_dir()
    removal.remove(folder_only=True)
    assert not run.path.exists()
    with sqlite3.connect(store.folder / "mlflow.db") as database:
        assert database.execute("SELECT count(*) FROM runs").fetchone()[0]
