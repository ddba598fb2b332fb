from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from flair2_exp.errors import TrackingError
from flair2_exp.tracking.outbox import Outbox
from flair2_exp.tracking.run import Run
from flair2_exp.tracking.store import Store
from tests.tracking.conftest import artifact, curve, read

Start = Callable[..., Run]


class Outage:
    """Makes a store refuse everything while it lasts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lasts = False
        self.calls = 0
        call = Store.call

        def failing(store: Store, what: str, action: object, **options: int) -> object:
            self.calls += 1
            if self.lasts:
                raise TrackingError(f"MLflow failed at {what}: no route.\nMend it.")
            return call(store, what, action, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(Store, "call", failing)


@pytest.fixture
def outage(monkeypatch: pytest.MonkeyPatch) -> Outage:
    return Outage(monkeypatch)


def test_an_outage_is_reported_once_and_all_is_sent_afterwards(
    start: Start,
    outage: Outage,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flair2_exp.tracking.outbox._FIRST_PAUSE", 0.0)
    run = start()
    outage.lasts = True
    file = tmp_path / "panel.png"
    for epoch in range(3):
        file.write_text(f"picture {epoch}")
        run.log_metrics({"train/loss": 1.0 - epoch}, epoch)
        run.flush()
        run.log_artifact(file, f"figures/{epoch}")
        run.log_text("text", f"texts/{epoch}.txt")
        run.set_tags({"epoch": epoch})
        file.unlink()
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1
    assert "no route" in caplog.text
    outage.lasts = False
    run.finish()
    kept = read(run)
    assert kept.info.status == "FINISHED"
    assert kept.data.tags["epoch"] == "2"
    assert curve(run, "train/loss") == [(0, 1.0), (1, 0.0), (2, -1.0)]
    assert artifact(run, "figures/1/panel.png") == "picture 1"
    assert artifact(run, "texts/2.txt") == "text"
    assert not (tmp_path / "pending").exists()


def test_during_an_outage_the_store_is_asked_rarely(start: Start, outage: Outage) -> None:
    run = start()
    outage.lasts, outage.calls = True, 0
    for epoch in range(100):
        run.log_metrics({"train/loss": 1.0}, epoch)
        run.flush()
    assert outage.calls == 1  # 15 s are left before the next time, then 30 s, then 60 s
    outage.lasts = False
    run.finish()
    assert len(curve(run, "train/loss")) == 100


def test_what_an_outage_left_is_sent_when_the_run_is_resumed(
    start: Start, outage: Outage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = start()
    outage.lasts = True
    run.log_metrics({"test/miou": 0.5}, 9)
    run.log_text("late", "late.txt")
    run.finish()
    assert "records are kept in" in caplog.text
    with (tmp_path / "pending" / "records.jsonl").open("a") as file:
        file.write('\n{"kind": "met')  # a process killed while it wrote
    outage.lasts = False
    assert read(run).info.status == "RUNNING"
    start(run_id=run.run_id).finish()
    assert read(run).info.status == "FINISHED"
    assert curve(run, "test/miou") == [(9, 0.5)]
    assert artifact(run, "late.txt") == "late"


def test_what_mlflow_calls_invalid_is_reported_and_blocks_nothing(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    call = Store.call

    def refusing(store: Store, what: str, action: object, **options: int) -> object:
        def refused(client: object) -> None:
            from mlflow.exceptions import MlflowException

            raise MlflowException.invalid_parameter_value("not like this")

        return call(store, what, refused if what == "storing tags" else action, **options)  # type: ignore[arg-type]

    run = start()
    monkeypatch.setattr(Store, "call", refusing)
    run.set_tags({"a": 1})
    run.log_metrics({"train/loss": 1.0}, 0)
    run.finish()
    assert "storing tags: not like this" in caplog.text
    assert curve(run, "train/loss") == [(0, 1.0)]
    assert not (tmp_path / "pending").exists()


def test_a_full_disk_does_not_stop_the_training(
    start: Start, outage: Outage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "pending").write_text("no folder can be made here")
    run = start()
    outage.lasts = True
    run.log_metrics({"train/loss": 1.0}, 0)
    run.finish()
    assert "cannot be kept" in caplog.text


def test_at_the_end_of_a_run_the_store_is_tried_for_a_while(
    start: Start,
    store: Store,
    outage: Outage,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        outage.lasts = len(pauses) < 4

    monkeypatch.setattr("flair2_exp.tracking.outbox.time.sleep", sleep)
    monkeypatch.setattr(store, "delivery_seconds", 600.0)
    run = start()
    outage.lasts = True
    run.log_metrics({"test/miou": 0.5}, 9)
    run.finish()
    assert pauses == [1.0, 2.0, 4.0, 8.0]
    assert caplog.text.count("trying for 600 s") == 1
    assert read(run).info.status == "FINISHED"
    assert curve(run, "test/miou") == [(9, 0.5)]
    assert not (tmp_path / "pending").exists()


@pytest.mark.parametrize(("status", "seconds"), [("FINISHED", 0.0), ("KILLED", 600.0)])
def test_a_run_that_is_not_to_wait_says_at_once_what_delivers_the_rest(
    status: str,
    seconds: float,
    start: Start,
    store: Store,
    outage: Outage,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def sleep(seconds: float) -> None:
        raise AssertionError(seconds)

    monkeypatch.setattr("flair2_exp.tracking.outbox.time.sleep", sleep)
    monkeypatch.setattr(store, "delivery_seconds", seconds)
    run = start()
    outage.lasts = True
    run.finish(status)
    assert f"python -m flair2_exp deliver {tmp_path}" in caplog.text


def artifact_folder(run: Run) -> Path:
    return Path(unquote(urlsplit(read(run).info.artifact_uri).path))


def test_an_artifact_that_cannot_be_sent_holds_back_neither_metrics_nor_the_end(
    start: Start, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = start()
    in_the_way = artifact_folder(run)
    in_the_way.parent.mkdir(parents=True, exist_ok=True)
    in_the_way.write_text("no folder can be made here")
    file = tmp_path / "panel.png"
    file.write_text("picture")
    for epoch in range(3):
        run.log_artifact(file, f"figures/{epoch}")
        run.log_text("text", f"texts/{epoch}.txt")
        run.log_metrics({"train/loss": 1.0 - epoch}, epoch)
        run.flush()
        assert len(curve(run, "train/loss")) == epoch + 1  # at once, not at the end
    run.finish()
    assert read(run).info.status == "FINISHED"
    assert "6 records are kept in" in caplog.text
    in_the_way.unlink()
    Outbox(store, run.run_id, tmp_path / "pending", resumed=True).send_pending(retries=0)
    assert artifact(run, "figures/2/panel.png") == "picture"
    assert artifact(run, "texts/0.txt") == "text"
    assert not (tmp_path / "pending").exists()


def test_a_kept_artifact_whose_file_is_gone_is_told_and_left_out(
    start: Start, store: Store, outage: Outage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = start()
    outage.lasts = True
    file = tmp_path / "panel.png"
    file.write_text("picture")
    run.log_artifact(file)
    run.finish()
    (kept,) = (tmp_path / "pending").glob("file-*/panel.png")
    kept.unlink()
    outage.lasts = False
    Outbox(store, run.run_id, tmp_path / "pending", resumed=True).send_pending(retries=0)
    assert "storing artifact" in caplog.records[-2].message
    assert read(run).info.status == "FINISHED"
    assert not (tmp_path / "pending").exists()


@pytest.mark.parametrize("torn", [b'{"kind": "met', b"\xff\xfe", b"12", b'{"a": 1}', b"[]"])
def test_torn_records_are_told_once_and_an_emptied_folder_is_removed(
    torn: bytes, start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = start()
    (tmp_path / "pending").mkdir()
    (tmp_path / "pending" / "records.jsonl").write_bytes(b"\n" + torn)
    (tmp_path / "pending" / "sent").write_bytes(b"\xff")
    for _ in range(2):
        start(run_id=run.run_id).finish()
    assert caplog.text.count("1 torn records") == 1
    assert not (tmp_path / "pending").exists()


def test_how_a_run_had_ended_is_sent_before_it_runs_again(start: Start, outage: Outage) -> None:
    run = start()
    outage.lasts = True
    run.finish("FAILED")
    outage.lasts = False
    again = start(run_id=run.run_id)
    assert read(again).info.status == "RUNNING"
    again.finish()
    assert read(again).info.status == "FINISHED"


def test_what_waits_is_sent_from_a_folder_that_has_moved(
    start: Start, store: Store, outage: Outage, tmp_path: Path
) -> None:
    run = start()
    outage.lasts = True
    file = tmp_path / "panel.png"
    file.write_text("picture")
    run.log_artifact(file)
    run.finish()
    outage.lasts = False
    (tmp_path / "pending").rename(tmp_path / "moved")
    Outbox(store, run.run_id, tmp_path / "moved", resumed=True).send_pending(retries=0)
    assert artifact(run, "panel.png") == "picture"
