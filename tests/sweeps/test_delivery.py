"""All that MLflow lacks below a folder is delivered: runs under their sweep's run, once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from flair2_exp.errors import TrackingError
from flair2_exp.lifecycle.assembly import store_at
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.locking import locked
from flair2_exp.sweeps.delivery import Deliverer, deliver_runs
from flair2_exp.sweeps.parent import Notes, open_parent, parent_of
from flair2_exp.tracking.pending import Pending
from flair2_exp.tracking.run import new_run
from flair2_exp.tracking.store import Store
from flair2_exp.tracking.tags import Tag
from tests.lifecycle.helpers import record_of
from tests.lifecycle.made import config_below, finished_folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with an empty store, which tests copy: making one takes seconds."""
    root = tmp_path_factory.mktemp("made")
    store_at(f"sqlite:///{root}/mlruns/mlflow.db")
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "results"))


def store_below(root: Path) -> Store:
    return store_at(f"sqlite:///{root}/mlruns/mlflow.db")


def sweep_folder(root: Path, *, seeds: int = 2) -> Path:
    """A sweep's folder with finished jobs, whose store is lost."""
    folder = root / "multirun" / "lost"
    for seed in range(seeds):
        path = folder / f"{seed}_utt_seed={seed}"
        finished_folder(path, config_below(root, f"seed={seed}"), run_id=f"{seed}" * 32)
    uri = f"sqlite:///{root}/mlruns/mlflow.db"
    Notes("lost", "key", "f" * 32, uri, str(folder)).write(folder)
    (folder / "report").mkdir()
    (folder / "report" / "report.md").write_text("the answer")
    (folder / "report" / "summary.md").write_text("**best: utt**\n")
    return folder


def all_runs(store: Store) -> list[Any]:
    return store.call("reading", lambda client: list(client.search_runs(["1"])))


def test_a_sweep_whose_store_is_lost_names_the_command_that_makes_it_again(root: Path) -> None:
    folder = sweep_folder(root)
    with pytest.raises(TrackingError, match=f"flair2_exp deliver {folder} --tracking-uri sqlite"):
        open_parent("lost", folder, config_below(root))
    assert not list(Deliverer().below(root / "outputs"))


@pytest.mark.parametrize("part", ["multirun", "multirun/lost", "multirun/lost/1_utt_seed=1"])
def test_runs_are_made_again_under_their_sweeps_run_and_nothing_twice(
    part: str, root: Path
) -> None:
    folder = sweep_folder(root)
    assert [each.left for each in Deliverer().below(root / part)].count(0) >= 2
    assert list(Deliverer().below(root / part)) == []
    list(Deliverer().below(folder))
    store = store_below(root)
    parent, *jobs = sorted(all_runs(store), key=lambda run: Tag.KIND not in run.data.tags)
    assert len(jobs) == 2
    assert parent.info.run_id == parent_of(folder)
    assert {run.info.status for run in (parent, *jobs)} == {"FINISHED"}
    assert {run.data.tags[Tag.PARENT] for run in jobs} == {parent.info.run_id}
    listed = store.call("x", lambda client: client.list_artifacts(parent.info.run_id, "report"))
    assert [each.path for each in listed] == ["report/report.md", "report/summary.md"]
    page = store.call("x", lambda client: client.get_run(parent.info.run_id)).data.tags
    description = page[Tag.DESCRIPTION]
    assert description.startswith("**best: utt**")
    for job in jobs:  # links to the runs as they are now
        assert f"](#/experiments/1/runs/{job.info.run_id}?" in description
    with open_parent("lost", folder, config_below(root), take_over=True) as again:
        assert again.run_id == parent.info.run_id


def test_a_sweep_is_delivered_to_another_store_and_stays_there(root: Path, tmp_path: Path) -> None:
    folder = sweep_folder(root)
    other = shutil.copytree(root / "mlruns", tmp_path / "other")
    uri = f"sqlite:///{other}/mlflow.db"
    assert len(list(Deliverer(uri).below(folder))) == 3
    assert list(Deliverer().below(folder)) == []
    assert len(all_runs(store_at(uri))) == 3


def test_a_moved_sweep_is_delivered_to_the_store_that_moved_with_it(root: Path) -> None:
    sweep_folder(root)
    moved = root.rename(root.parent / "moved")
    assert len(list(Deliverer().below(moved / "multirun"))) == 3
    assert len(all_runs(store_below(moved))) == 3
    assert not root.exists()


def kept_back(root: Path, seed: int = 0) -> tuple[RunFolder, Store, str]:
    """A finished job whose MLflow run is open, since its end is still in the folder."""
    folder = RunFolder(sweep_folder(root) / f"{seed}_utt_seed={seed}")
    store = store_below(root)
    record = record_of(folder.path)
    run_id = new_run(store, store.ensure_experiment("flair2"), "kept", record.tags)
    record.run_id = run_id
    record.write(folder)
    waiting = Pending(folder.unsent)
    waiting.keep({"kind": "metrics", "metrics": [["late", 0.5, 1, 0]]})
    waiting.keep({"kind": "status", "status": "FINISHED", "end": 2_000_000})
    return folder, store, run_id


def test_what_jobs_could_not_send_is_sent_by_the_next_start_of_their_sweep(root: Path) -> None:
    folder, store, run_id = kept_back(root)
    deliver_runs([folder], store)
    run = store.call("x", lambda client: client.get_run(run_id))
    assert (run.info.status, run.info.end_time) == ("FINISHED", 2_000_000)
    assert run.data.metrics == {"late": 0.5}
    assert not folder.unsent.exists()


def test_what_is_in_the_way_is_said_and_costs_nothing_else(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, _ = kept_back(root)

    def failing(*_: object, **__: object) -> None:
        raise TrackingError("MLflow is away.\nWait for it.")

    with monkeypatch.context() as patch:
        patch.setattr("flair2_exp.sweeps.delivery.store_at", failing)
        told = list(Deliverer().below(root))
    assert {each.text for each in told} == {"MLflow is away."}
    assert next(each.left for each in told if each.folder == folder.path) == 2
    assert folder.unsent.exists()
    assert all(each.left == 0 for each in Deliverer().below(root))


def test_a_search_without_a_record_is_delivered_by_what_its_folder_kept(root: Path) -> None:
    store = store_below(root)
    run_id = new_run(store, store.ensure_experiment("flair2"), "study", {Tag.KIND: "study"})
    unsent = RunFolder(root / "multirun" / "study").unsent
    target = {"run_id": run_id, "uri": store.address, "folder": str(unsent)}
    Pending(unsent, target).keep({"kind": "status", "status": "FINISHED", "end": 1})
    (told,) = Deliverer().below(root / "multirun")
    assert (told.text, told.left) == ("1 of 1 records sent", 0)
    assert store.call("x", lambda client: client.get_run(run_id)).info.status == "FINISHED"


def test_a_folder_in_use_is_left_to_whoever_uses_it(root: Path) -> None:
    folder = RunFolder(sweep_folder(root, seeds=1) / "0_utt_seed=0")
    with locked(folder.path):
        told = {each.folder: each for each in Deliverer().below(root)}
    assert "is in use by" in told[folder.path].text
    assert told[folder.path].left == 0
