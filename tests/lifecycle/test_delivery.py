"""What MLflow lacks of a run is delivered by its next start, and made again from its folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flair2_exp.errors import TrackingError
from flair2_exp.lifecycle import experiment
from flair2_exp.lifecycle.assembly import open_store, store_at
from flair2_exp.lifecycle.delivery import address_of, lacks, rebuild, settle
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import RunRecord, recorded_status
from flair2_exp.tracking.outbox import Outbox
from flair2_exp.tracking.process import WriterProcess
from flair2_exp.tracking.run import new_run
from flair2_exp.tracking.store import Store
from flair2_exp.tracking.tags import Tag
from tests.configs import SMALL_SAMPLE
from tests.lifecycle.helpers import Killed, record_of
from tests.lifecycle.made import SCORES, config_below, finished_folder


@pytest.fixture
def outage(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Lets the store refuse to take anything from now on, or no longer."""
    call, lasts = Store.call, [False]

    def failing(store: Store, what: str, action: Any, **options: int) -> object:
        if lasts[0] and what.startswith("storing"):
            raise TrackingError(f"MLflow failed at {what}: no route.\nMend it.")
        return call(store, what, action, **options)

    monkeypatch.setattr(Store, "call", failing)
    return lambda now: lasts.__setitem__(0, now)


def test_what_an_outage_kept_from_a_finished_run_is_sent_by_the_same_command(
    root: Path, outage: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_below(root, *SMALL_SAMPLE, "model=unet")
    folder = RunFolder(root / "delivered")
    finish = experiment._Life._train_and_test

    def cut_off(*arguments: Any) -> Any:
        outage(True)
        return finish(*arguments)

    def impatient(outbox: Outbox, seconds: float) -> None:
        assert (len(outbox) > 0, seconds) == (True, 60.0)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(experiment._Life, "_train_and_test", cut_off)
        patch.setattr(Outbox, "insist", impatient)
        with pytest.raises(KeyboardInterrupt):  # which does not undo that the run is finished
            experiment.run(config, folder.path)
    record = record_of(folder.path)
    store = open_store(config)
    assert store is not None
    assert (record.status, kept(store, record).info.status) == ("FINISHED", "RUNNING")
    outage(False)
    # The next command of anybody's, whose process is another one, does not take it for killed.
    tags = kept(store, record).data.tags
    assert recorded_status(record.run_id, tags) == "FINISHED"
    experiment.run(config, folder.path)
    run = kept(store, record)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test/miou"] == record_of(folder.path).scores["test/miou"]
    assert not folder.unsent.exists()


def kept(store: Store, record: RunRecord) -> Any:
    return store.call("reading", lambda client: client.get_run(record.run_id))


def artifacts(store: Store, run_id: str) -> set[str]:
    def listed(client: Any) -> set[str]:
        parts = ("", "config", "results", "error")
        return {each.path for part in parts for each in client.list_artifacts(run_id, part)}

    return store.call("listing", listed)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of results whose store is made once."""
    return tmp_path_factory.mktemp("delivery")


@pytest.fixture
def store(place: Path) -> Store:
    return store_at(f"sqlite:///{place}/mlruns/mlflow.db")


def runs(store: Store, folder: RunFolder) -> list[Any]:
    query = f"tags.`{Tag.FOLDER}` = '{folder.path.absolute()}'"
    return store.call("reading", lambda client: list(client.search_runs(["1"], query)))


def test_a_run_that_the_store_lacks_is_made_again_from_its_folder_once(
    place: Path, store: Store
) -> None:
    config = config_below(place, "seed=7", "+tracking.tags.mine=yes")
    folder = finished_folder(place / "outputs" / "lost", config)
    for _ in range(2):
        record = record_of(folder.path)
        if lacks(store, record.run_id):
            rebuild(folder, record, store, parent="1" * 32)
        settle(folder, record, store)
    (run,) = runs(store, folder)
    assert run.info.run_id == record_of(folder.path).run_id
    assert (run.info.status, run.info.start_time, run.info.end_time) == (
        "FINISHED", 1_000_000, 2_000_000,
    )  # fmt: skip
    assert run.info.run_name == "utt seed=7"
    assert run.data.params["seed"] == "7"
    assert run.data.tags[Tag.PARENT] == "1" * 32
    assert record.tags.items() <= run.data.tags.items()
    expected = {name: SCORES[name] for name in SCORES if name.startswith("test/")}
    assert expected.items() <= run.data.metrics.items()
    assert run.data.metrics["best/val/miou"] == 0.4
    curve = store.call("x", lambda c: c.get_metric_history(run.info.run_id, "train/loss"))
    assert sorted((each.step, each.value) for each in curve) == [(1, 0.9), (2, 0.5)]
    assert {
        "config/config.yaml", "config/deciding.json", "results/metrics.json",
        "results/confusion_per_patch.npz", "results/history.csv", "confusion.png",
    } <= artifacts(store, run.info.run_id)  # fmt: skip


@pytest.mark.parametrize("moment", ["RunRecord.write", "log_config", "hand_over"])
def test_a_making_that_was_killed_goes_on_with_the_same_run(
    moment: str, place: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(*arguments: Any, **_: Any) -> None:
        raise Killed

    folder = finished_folder(place / "outputs" / moment, config_below(place))
    record = record_of(folder.path)
    with monkeypatch.context() as patch:
        patch.setattr(f"flair2_exp.lifecycle.delivery.{moment}", dying)
        with pytest.raises(Killed):
            rebuild(folder, record, store)
    monkeypatch.setattr(WriterProcess, "has_ended", lambda *_, **__: True)
    record = record_of(folder.path)
    assert lacks(store, record.run_id)
    rebuild(folder, record, store)
    (run,) = runs(store, folder)
    assert (run.info.run_id, run.info.status) == (record.run_id, "FINISHED")
    curve = store.call("x", lambda c: c.get_metric_history(run.info.run_id, "train/loss"))
    assert len(curve) == 2
    assert not lacks(store, record.run_id)


def test_an_unfinished_run_is_made_again_so_that_its_command_resumes_it(
    place: Path, store: Store
) -> None:
    folder = finished_folder(place / "outputs" / "open", config_below(place), status="TRAINED")
    rebuild(folder, record_of(folder.path), store)
    (run,) = runs(store, folder)
    assert run.info.status == "KILLED"
    assert run.data.metrics["val/miou"] == 0.4


def test_a_run_wrongly_marked_gets_the_status_that_its_folder_has(
    place: Path, store: Store
) -> None:
    folder = finished_folder(place / "outputs" / "marked", config_below(place))
    record = record_of(folder.path)
    experiment_id = store.ensure_experiment("flair2")
    record.run_id = new_run(store, experiment_id, "marked", record.tags)
    store.call("x", lambda client: client.set_terminated(record.run_id, "KILLED"))
    settle(folder, record, store)
    assert kept(store, record).info.status == "FINISHED"


def test_a_run_that_the_store_lacks_is_named_with_the_command_that_makes_it(
    place: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    folder = finished_folder(place / "outputs" / "unknown", config_below(place))
    with pytest.raises(TrackingError, match=f"flair2_exp deliver {folder} --tracking-uri sqlite"):
        settle(folder, record_of(folder.path), store)


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED", "RUNNING", "TRAINED"])
def test_a_folder_tells_how_its_own_run_ended_and_no_other(status: str, tmp_path: Path) -> None:
    folder = finished_folder(tmp_path / "run", config_below(tmp_path), status=status)
    tags = {str(Tag.FOLDER): str(folder)}
    ended = status if status in ("FINISHED", "FAILED", "KILLED") else ""
    assert recorded_status("0" * 32, tags) == ended
    assert recorded_status("1" * 32, tags) == ""
    assert recorded_status("0" * 32, {}) == ""


def test_a_sweeps_folder_tells_by_what_waits_how_its_run_ended(
    store: Store, tmp_path: Path, outage: Callable[[bool], None]
) -> None:
    outage(True)
    outbox = Outbox(store, "0" * 32, RunFolder(tmp_path).unsent, resumed=False)
    outbox.send({"kind": "status", "status": "FINISHED", "end": 1})
    assert recorded_status("0" * 32, {str(Tag.FOLDER): str(tmp_path)}) == "FINISHED"


def test_the_store_of_a_moved_or_copied_folder_is_the_one_beside_it(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    finished_folder(one / "outputs" / "run", config_below(one))
    (one / "mlruns").mkdir()
    (one / "mlruns" / "mlflow.db").touch()
    shutil.copytree(one, two)

    def address(folder: Path) -> str:
        return address_of(RunFolder(folder), RunRecord.read(RunFolder(folder)))

    for root in (one, two):
        assert address(root / "outputs" / "run") == f"sqlite:///{root}/mlruns/mlflow.db"
    shutil.copytree(one / "outputs" / "run", tmp_path / "copy")  # alone: nothing is beside it
    assert address(tmp_path / "copy") == f"sqlite:///{one}/mlruns/mlflow.db"
