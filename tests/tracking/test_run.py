from __future__ import annotations

import json
import logging
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import pytest

from flair2_exp.errors import TrackingError
from flair2_exp.signals import Terminated
from flair2_exp.tracking import NullRun, Store, TrackedRun, local_uri, summary
from flair2_exp.tracking.process import _start_time

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

Start = Callable[..., TrackedRun]


def read(run: TrackedRun) -> MlflowRun:
    return run.store.call("reading", lambda client: client.get_run(run.run_id))


def curve(run: TrackedRun, name: str) -> list[tuple[int, float]]:
    history = run.store.call("reading", lambda c: c.get_metric_history(run.run_id, name))
    return sorted((metric.step, metric.value) for metric in history)


def artifact(run: TrackedRun, path: str) -> str:
    return (Path(unquote(urlsplit(read(run).info.artifact_uri).path)) / path).read_text()


def test_everything_told_to_a_run_is_there(start: Start, store: Store, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text('{"test/miou": 0.5}')
    parent = start(name="sweep")
    with start(name="utt seed=1", tags={"flair2.seed": 1}, parent_run_id=parent.run_id) as run:
        run.log_params({"model": {"name": "utt", "weights": None}, "seed": 1})
        run.log_metrics({"train/loss": 1.5, "test/iou/herbaceous vegetation": 0.25}, 3)
        run.log_artifact(tmp_path / "metrics.json", "results")
        run.log_files({"config/config.yaml": "seed: 1\n", "provenance/git.json": {"commit": None}})
        run.describe(summary(facts={"model": "utt"}, scores={"test/miou": 0.5}))
    parent.finish()
    kept = read(run)
    assert kept.info.status == "FINISHED"
    assert kept.info.run_name == "utt seed=1"
    assert kept.data.params == {"model.name": "utt", "model.weights": "null", "seed": "1"}
    assert kept.data.metrics == {"train/loss": 1.5, "test/iou/herbaceous vegetation": 0.25}
    assert kept.data.tags["mlflow.parentRunId"] == parent.run_id
    assert kept.data.tags["flair2.seed"] == "1"
    assert "**test/miou 0.5000**" in kept.data.tags["mlflow.note.content"]
    assert artifact(run, "results/metrics.json") == '{"test/miou": 0.5}'
    assert artifact(run, "config/config.yaml") == "seed: 1\n"
    assert json.loads(artifact(run, "provenance/git.json")) == {"commit": None}
    assert not (tmp_path / "pending").exists()


def test_a_run_id_in_the_environment_diverts_nothing(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    victim = start()
    monkeypatch.setenv("MLFLOW_RUN_ID", victim.run_id)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", local_uri(tmp_path / "elsewhere"))
    with start() as run:
        run.log_params({"a": 1})
        run.log_metrics({"m": 1.0})
    assert run.run_id != victim.run_id
    assert (read(victim).data.params, read(victim).data.metrics) == ({}, {})
    assert read(run).data.params == {"a": "1"}
    assert not (tmp_path / "elsewhere").exists()
    victim.finish()


def test_hundreds_of_params_tags_and_metrics_go_through(start: Start) -> None:
    with start() as run:
        run.log_params({f"p{number}": "é" * 2000 for number in range(250)})
        run.set_tags({f"t{number}": number for number in range(250)})
        for step in range(50):
            run.log_metrics({f"m{number}": step for number in range(50)}, step)
    kept = read(run).data
    assert len(kept.params) == 250
    assert sum(name.startswith("t") for name in kept.tags) == 250
    assert len(kept.metrics) == 50
    assert curve(run, "m49") == [(step, float(step)) for step in range(50)]


def test_a_long_value_is_kept_whole_as_an_artifact(start: Start) -> None:
    text = "".join(str(number) for number in range(3000))
    with start() as run:
        run.log_params({"model": {"long": text}, "short": "x"})
    value = read(run).data.params["model.long"]
    assert len(value) == 6000
    assert text.startswith(value[:5800])
    assert "params/model.long.txt" in value
    assert artifact(run, "params/model.long.txt") == text


def test_metrics_that_are_no_numbers_of_the_line_are_kept(start: Start) -> None:
    with start() as run:
        run.log_metrics({"nan": math.nan, "inf": math.inf}, 1)
    metrics = read(run).data.metrics
    assert math.isnan(metrics["nan"])
    assert metrics["inf"] > 1e300  # the database's largest number


def test_metrics_wait_and_are_sent_together(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start()
    calls = []
    call = Store.call
    monkeypatch.setattr(
        Store,
        "call",
        lambda self, what, *a, **k: (calls.append(what), call(self, what, *a, **k))[1],
    )
    for step in range(40):
        run.log_metrics({"train/loss_step": 1.0}, step)
    assert calls == []
    run.flush()
    assert calls == ["storing metrics"]
    for step in range(40, 540):
        run.log_metrics({"train/loss_step": 1.0}, step)
    assert calls == ["storing metrics"] * 2
    run.finish()
    assert len(curve(run, "train/loss_step")) == 540


def test_credentials_reach_neither_params_nor_tags_nor_texts(start: Start) -> None:
    address = "http://me:hunter2@host:5000"
    with start(tags={"flair2.uri": address}) as run:
        run.log_params({"tracking": {"uri": address, "password": "hunter2"}})
        run.log_text(f"uri: {address}\n", "config/config.yaml")
    kept = read(run).data
    assert kept.params == {"tracking.uri": "http://***@host:5000", "tracking.password": "***"}
    assert kept.tags["flair2.uri"] == "http://***@host:5000"
    assert artifact(run, "config/config.yaml") == "uri: http://***@host:5000\n"


@pytest.mark.parametrize(
    ("exception", "status"),
    [
        (ValueError("bad value at http://me:pw@host"), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (Terminated(), "KILLED"),
    ],
)
def test_an_exception_ends_the_run_and_goes_on(
    start: Start, exception: BaseException, status: str
) -> None:
    run = start()
    with pytest.raises(type(exception)), run:  # noqa: PT012
        run.log_metrics({"train/loss": 2.0}, 0)
        raise exception
    kept = read(run)
    assert kept.info.status == status
    assert kept.data.metrics == {"train/loss": 2.0}
    assert kept.data.tags["flair2.error"].startswith(type(exception).__name__)
    assert "raise exception" in artifact(run, "error/traceback.txt")
    assert "pw@" not in artifact(run, "error/traceback.txt") + kept.data.tags["flair2.error"]


def test_leaving_with_status_zero_is_no_error(start: Start) -> None:
    run = start()
    with pytest.raises(SystemExit), run:
        raise SystemExit(0)
    kept = read(run)
    assert kept.info.status == "FINISHED"
    assert "flair2.error" not in kept.data.tags


def test_a_second_finish_changes_nothing(start: Start) -> None:
    run = start()
    run.finish("FAILED")
    run.finish("FINISHED")
    assert read(run).info.status == "FAILED"


def test_a_resumed_run_is_the_same_run_without_doubles(
    start: Start, store: Store, tmp_path: Path
) -> None:
    first = start()
    with pytest.raises(ValueError, match="torn"), first:  # noqa: PT012
        first.log_params({"seed": 1, "lr": 0.1, "long": "x" * 7000})
        for epoch in range(3):
            first.log_metrics({"train/loss": 1.0 - epoch / 10, "nan": math.nan}, epoch)
        raise ValueError("torn")
    again = TrackedRun.resume(store, first.run_id, pending=tmp_path / "p", tags={"try": 2})
    assert read(again).info.status == "RUNNING"
    assert "flair2.error" not in read(again).data.tags
    with again:
        again.log_params({"seed": 1, "lr": 0.2, "long": "x" * 6999 + "y", "new": True})
        for epoch in range(2, 5):  # the third epoch is trained again, with the same result
            again.log_metrics({"train/loss": 1.0 - epoch / 10, "nan": math.nan}, epoch)
        again.log_metrics({"train/loss": 7.0}, 0)  # another value than before is not hidden
    kept = read(again)
    assert kept.info.status == "FINISHED"
    assert kept.data.params["lr"] == "0.1"
    assert kept.data.params["new"] == "true"
    assert kept.data.tags["flair2.changed_params"] == "lr, long"
    assert kept.data.tags["try"] == "2"
    changed = json.loads(artifact(again, "config/changed_params.json"))
    assert changed["lr"] == {"first": "0.1", "now": "0.2"}
    steps = [step for step, _ in curve(again, "train/loss")]
    assert steps == [0, 0, 1, 2, 3, 4]
    assert [step for step, _ in curve(again, "nan")] == [0, 1, 2, 3, 4]


def test_a_run_that_is_not_there_or_is_being_written_cannot_be_resumed(
    start: Start, store: Store, tmp_path: Path
) -> None:
    with pytest.raises(TrackingError, match="not found"):
        TrackedRun.resume(store, "0" * 32, pending=tmp_path)
    run = start()
    other = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
    )
    tags = {**read(run).data.tags, "flair2.pid": str(other.pid)}
    before, _, _ = tags["flair2.process"].rpartition("/")
    run.set_tags({**tags, "flair2.process": f"{before}/{_start_time(other.pid)}"})
    with pytest.raises(TrackingError, match=f"being written by process {other.pid}"):
        TrackedRun.resume(store, run.run_id, pending=tmp_path)
    other.communicate(b"")
    TrackedRun.resume(store, run.run_id, pending=tmp_path).finish()
    assert read(run).info.status == "FINISHED"


def test_who_holds_the_folder_resumes_a_run_killed_on_another_machine(
    start: Start, store: Store, tmp_path: Path
) -> None:
    run = start()
    run.set_tags({"flair2.host": "elsewhere", "flair2.pid": "7"})
    with pytest.raises(TrackingError, match="being written by process 7 on elsewhere"):
        TrackedRun.resume(store, run.run_id, pending=tmp_path)
    TrackedRun.resume(store, run.run_id, pending=tmp_path, take_over=True).finish()
    assert read(run).info.status == "FINISHED"
    assert read(run).data.tags["flair2.host"] != "elsewhere"


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


def test_an_outage_is_told_once_and_all_is_sent_afterwards(
    start: Start,
    outage: Outage,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flair2_exp.tracking.run._FIRST_PAUSE", 0.0)
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
    start: Start, store: Store, outage: Outage, tmp_path: Path, caplog: pytest.LogCaptureFixture
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
    TrackedRun.resume(store, run.run_id, pending=tmp_path / "pending").finish()
    assert read(run).info.status == "FINISHED"
    assert curve(run, "test/miou") == [(9, 0.5)]
    assert artifact(run, "late.txt") == "late"


def test_what_mlflow_finds_wrong_is_told_and_holds_nothing_up(
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


@pytest.mark.parametrize("path", ["../outside.txt", "/outside.txt", "a/../../x.txt", "."])
def test_no_artifact_lies_outside_the_run(start: Start, path: str) -> None:
    with start() as run, pytest.raises(ValueError, match="no path within"):
        run.log_text("text", path)


def test_a_full_disk_does_not_stop_the_training(
    start: Start, outage: Outage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "pending").write_text("no folder can be made here")
    run = start()
    outage.lasts = True
    run.log_metrics({"train/loss": 1.0}, 0)
    run.finish()
    assert "cannot be kept" in caplog.text


CHILD = """
import os, signal, sys, time
from pathlib import Path
from flair2_exp.signals import signals_as_exceptions
from flair2_exp.tracking import TrackedRun, open_store
uri, experiment, folder = sys.argv[1:]
store = open_store(uri)
run = TrackedRun.start(store, experiment, name="child", pending=Path(folder))
with signals_as_exceptions(), run:
    run.log_metrics({"train/loss": 1.0}, 0)
    run.flush()
    run.log_metrics({"train/loss": 0.5}, 1)
    print(run.run_id, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_a_process_and_closes_its_run(
    number: signal.Signals, store: Store, experiment: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", CHILD, store.uri, experiment, str(tmp_path / "pending")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    run_id = child.stdout.readline().strip()
    child.send_signal(number)
    _, errors = child.communicate(timeout=60)
    run = store.call("reading", lambda client: client.get_run(run_id))
    if number == signal.SIGKILL:
        assert child.returncode == -number
        assert run.info.status == "RUNNING"
        assert store.close_dead_runs() == [run_id]
        run = store.call("reading", lambda client: client.get_run(run_id))
        assert run.data.metrics == {"train/loss": 1.0}  # what was flushed
    else:
        assert run.data.metrics == {"train/loss": 0.5}  # with what waited
        assert child.returncode == 143
        assert errors == ""  # no traceback
    assert run.info.status == "KILLED"


def test_tracking_turned_off_has_the_same_interface_and_imports_nothing() -> None:
    code = """
import sys
from flair2_exp.tracking import NullRun
with NullRun() as run:
    run.log_params({"a": {"b": 1}})
    run.log_metrics({"m": 1.0}, 1)
    run.log_artifact("/nowhere", "x")
    run.log_text("t", "p")
    run.log_files({"a.json": {}})
    run.set_tags({"a": 1})
    run.describe("d")
    run.flush()
heavy = {"mlflow", "torch", "lightning", "matplotlib", "numpy", "requests", "pandas"}
print(sorted(heavy & set(sys.modules)))
"""
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"
    missing = set(dir(TrackedRun)) - set(dir(NullRun))
    assert {name for name in missing if not name.startswith("_")} == {"start", "resume"}


def test_storing_an_epoch_takes_milliseconds(start: Start) -> None:
    run = start()
    metrics = {f"val/metric {number}": 0.5 for number in range(30)}
    begin = time.process_time()
    for epoch in range(20):
        run.log_metrics(metrics, epoch)
        run.flush()
    assert (time.process_time() - begin) / 20 < 0.2  # 20 ms measured; a slow machine is no failure
    run.finish()
