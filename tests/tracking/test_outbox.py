from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from flair2_exp.errors import TrackingError
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
