from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flair2_exp.errors import ConfigError, TrackingError
from flair2_exp.optuna_sweeper.process import start_time
from flair2_exp.signals import Preempted, Terminated
from flair2_exp.tracking.run import Run, open_run
from flair2_exp.tracking.store import Store, local_uri
from flair2_exp.tracking.summary import summary
from flair2_exp.tracking.system import require_psutil
from flair2_exp.tracking.tags import Tag
from tests.tracking.conftest import artifact, curve, read

Start = Callable[..., Run]


def test_everything_logged_to_a_run_is_there(start: Start, store: Store, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text('{"test/miou": 0.5}')
    parent = start(name="sweep")
    with start(name="utt seed=1", tags={Tag.SEED: 1, Tag.PARENT: parent.run_id}) as run:
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
    assert kept.data.tags[Tag.PARENT] == parent.run_id
    assert kept.data.tags[Tag.SEED] == "1"
    assert "**test/miou 0.5000**" in kept.data.tags[Tag.DESCRIPTION]
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


def test_long_values_and_metrics_that_are_not_finite_are_kept(start: Start) -> None:
    text = "".join(str(number) for number in range(3000))
    with start() as run:
        run.log_params({"model": {"long": text}, "short": "x"})
        run.log_metrics({"nan": math.nan, "inf": math.inf}, 1)
    kept = read(run).data
    value = kept.params["model.long"]
    assert len(value) == 6000
    assert text.startswith(value[:5800])
    assert "params/model.long.txt" in value
    assert artifact(run, "params/model.long.txt") == text
    assert math.isnan(kept.metrics["nan"])
    assert kept.metrics["inf"] > 1e300  # the database's largest number


def test_metrics_wait_and_are_sent_together(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start()
    calls = []
    call = Store.call

    def counting(store: Store, what: str, *arguments: Any, **options: Any) -> object:
        calls.append(what)
        return call(store, what, *arguments, **options)

    monkeypatch.setattr(Store, "call", counting)
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
    with start(tags={"uri": address}) as run:
        run.log_params({"tracking": {"uri": address, "password": "hunter2"}})
        run.log_text(f"uri: {address}\n", "config/config.yaml")
    kept = read(run).data
    assert kept.params == {"tracking.uri": "http://***@host:5000", "tracking.password": "***"}
    assert kept.tags["uri"] == "http://***@host:5000"
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
    assert kept.data.tags[Tag.ERROR].startswith(type(exception).__name__)
    assert "raise exception" in artifact(run, "error/traceback.txt")
    assert "pw@" not in artifact(run, "error/traceback.txt") + kept.data.tags[Tag.ERROR]


def test_leaving_with_status_zero_is_no_error_and_a_second_end_changes_nothing(
    start: Start,
) -> None:
    run = start()
    with pytest.raises(SystemExit), run:
        raise SystemExit(0)
    run.finish("FAILED")
    kept = read(run)
    assert kept.info.status == "FINISHED"
    assert Tag.ERROR not in kept.data.tags


def test_a_resumed_run_is_the_same_run_without_doubles(
    start: Start, store: Store, tmp_path: Path
) -> None:
    first = start()
    with pytest.raises(ValueError, match="torn"), first:  # noqa: PT012
        first.log_params({"seed": 1, "lr": 0.1, "long": "x" * 7000})
        for epoch in range(3):
            first.log_metrics({"train/loss": 1.0 - epoch / 10, "nan": math.nan}, epoch)
        raise ValueError("torn")
    again = start(run_id=first.run_id, tags={"try": 2})
    assert read(again).info.status == "RUNNING"
    assert Tag.ERROR not in read(again).data.tags
    with again:
        again.log_params({"seed": 1, "lr": 0.2, "long": "x" * 6999 + "y", "new": True})
        for epoch in range(2, 5):  # the third epoch is trained again, with the same result
            again.log_metrics({"train/loss": 1.0 - epoch / 10, "nan": math.nan}, epoch)
        again.log_metrics({"train/loss": 7.0}, 0)  # another value than before is not hidden
    kept = read(again)
    assert kept.info.status == "FINISHED"
    assert kept.data.params["lr"] == "0.1"
    assert kept.data.params["new"] == "true"
    assert kept.data.tags[Tag.CHANGED_PARAMS] == "lr, long"
    assert kept.data.tags["try"] == "2"
    changed = json.loads(artifact(again, "config/changed_params.json"))
    assert changed["lr"] == {"first": "0.1", "now": "0.2"}
    steps = [step for step, _ in curve(again, "train/loss")]
    assert steps == [0, 0, 1, 2, 3, 4]
    assert [step for step, _ in curve(again, "nan")] == [0, 1, 2, 3, 4]


def test_a_parameter_that_is_none_any_more_has_changed_too(start: Start) -> None:
    with start() as first:
        first.log_params({"lr": 0.1}, {"lr": 0.1, "epochs": 5})
    again = start(run_id=first.run_id)
    with again:
        again.log_params({"epochs": 9}, {"lr": 0.2, "epochs": 9})
    kept = read(again)
    assert kept.data.params == {"lr": "0.1", "epochs": "9"}
    assert kept.data.tags[Tag.CHANGED_PARAMS] == "lr"


def test_a_run_names_its_data_once_however_often_it_is_resumed(start: Start) -> None:
    data = ("sample", "0123456789ab", "/data/sample", {"split": "official"})
    with start() as first:
        first.log_dataset(*data)
    with start(run_id=first.run_id) as again:
        again.log_dataset(*data)
    (kept,) = read(again).inputs.dataset_inputs
    assert (kept.dataset.name, kept.dataset.digest) == data[:2]
    assert json.loads(kept.dataset.source) == {"uri": "/data/sample"}
    assert json.loads(kept.dataset.profile) == {"split": "official"}


def test_what_an_attempt_failed_with_goes_when_a_later_one_is_done(start: Start) -> None:
    with pytest.raises(ValueError, match="torn"), start() as run:
        raise ValueError("torn")
    assert "torn" in artifact(run, "error/traceback.txt")
    with pytest.raises(ValueError, match="again"), start(run_id=run.run_id) as run:
        raise ValueError("again")
    assert "again" in artifact(run, "error/traceback.txt")
    with start(run_id=run.run_id) as run:
        run.log_text("kept", "results/kept.txt")
    assert artifact(run, "results/kept.txt") == "kept"
    with pytest.raises(FileNotFoundError):
        artifact(run, "error/traceback.txt")


def test_a_watched_run_has_measurements_of_the_machine_at_whole_seconds(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flair2_exp.tracking.system._FIRST_SECONDS", 0.05)
    with start() as run:
        run.watch_system()
    kept = read(run).data.metrics
    assert 0 < kept["system/system_memory_usage_percentage"] <= 100
    assert "system/cpu_utilization_percentage" in kept
    assert all(step >= 1 for step, _ in curve(run, "system/cpu_utilization_percentage"))


def test_system_metrics_without_their_package_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="flair2-exp\\[system-metrics\\]"):
        require_psutil()


def test_a_run_that_is_not_there_or_is_being_written_cannot_be_resumed(
    start: Start, store: Store, tmp_path: Path
) -> None:
    with pytest.raises(TrackingError, match=r"has no run 0{32}(.|\n)*flair2_exp deliver "):
        start(run_id="0" * 32)
    run = start()
    other = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
    )
    tags = {**read(run).data.tags, Tag.PID: str(other.pid)}
    before, _, _ = tags[Tag.PROCESS].rpartition("/")
    run.set_tags({**tags, Tag.PROCESS: f"{before}/{start_time(other.pid)}"})
    with pytest.raises(TrackingError, match=f"being written by process {other.pid}"):
        start(run_id=run.run_id)
    other.communicate(b"")
    start(run_id=run.run_id).finish()
    assert read(run).info.status == "FINISHED"


def test_who_holds_the_folder_resumes_a_run_killed_on_another_machine(
    start: Start, store: Store, tmp_path: Path
) -> None:
    run = start()
    run.set_tags({Tag.HOST: "elsewhere", Tag.PID: "7"})
    with pytest.raises(TrackingError, match="being written by process 7 on elsewhere"):
        start(run_id=run.run_id)
    start(run_id=run.run_id, take_over=True).finish()
    assert read(run).info.status == "FINISHED"
    assert read(run).data.tags[Tag.HOST] != "elsewhere"


def test_a_run_left_by_a_process_that_was_killed_before_noting_it_is_resumed(start: Start) -> None:
    def opened(key: str) -> Run:
        tags = {Tag.SWEEP_KEY: key, Tag.FOLDER: "http://me:pw@host", "try": 1}
        return start(tags=tags, lookup=(Tag.SWEEP_KEY, Tag.FOLDER))

    left = opened("a")
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    left.set_tags({Tag.PID: gone.pid})
    assert opened("b").run_id != left.run_id
    again = opened("a")
    assert again.run_id == left.run_id
    again.finish()
    assert opened("a").run_id != left.run_id  # one that is finished is another run's


def test_a_released_run_is_closed_and_belongs_to_no_process(start: Start) -> None:
    run = start(tags={Tag.STUDY: "s"})
    run.release()
    released = read(run)
    assert released.info.status == "FINISHED"
    assert {Tag.HOST, Tag.PID, Tag.PROCESS}.isdisjoint(released.data.tags)
    assert released.data.tags[Tag.STUDY] == "s"
    with start(run_id=run.run_id):
        assert read(run).data.tags.keys() >= {Tag.HOST, Tag.PID, Tag.PROCESS}


def test_a_preempted_run_stays_running_as_nobodys_until_it_resumes(
    start: Start, store: Store
) -> None:
    run = start()
    with pytest.raises(Preempted), run:  # noqa: PT012
        run.log_metrics({"train/loss": 1.0})
        raise Preempted(signal.SIGUSR1)
    left = read(run)
    assert left.info.status == "RUNNING"
    assert left.info.end_time is None
    assert left.data.metrics == {"train/loss": 1.0}
    assert left.data.tags[Tag.PREEMPTED] == "true"
    assert {Tag.HOST, Tag.PID, Tag.PROCESS, Tag.ERROR}.isdisjoint(left.data.tags)
    assert store.close_dead_runs() == []
    with start(run_id=run.run_id):
        resumed = read(run).data.tags
        assert resumed.keys() >= {Tag.HOST, Tag.PID, Tag.PROCESS}
        assert Tag.PREEMPTED not in resumed
    assert read(run).info.status == "FINISHED"


def test_without_a_store_a_run_keeps_nothing(tmp_path: Path) -> None:
    with open_run(None, "flair2", "a run", tmp_path / "p", tags={}, run_id="0" * 32) as run:
        run.log_metrics({"m": 1.0})
    assert (run.run_id, run.store, os.listdir(tmp_path)) == ("", None, [])


@pytest.mark.parametrize("path", ["../outside.txt", "/outside.txt", "a/../../x.txt", "."])
def test_no_artifact_lies_outside_the_run(start: Start, path: str) -> None:
    with start() as run, pytest.raises(ValueError, match="not a path within"):
        run.log_text("text", path)


CHILD = """
import os, signal, sys, time
from pathlib import Path
from flair2_exp.signals import signals_as_exceptions
from flair2_exp.tracking.run import open_run
from flair2_exp.tracking.store import open_store
uri, folder = sys.argv[1:]
run = open_run(open_store(uri), "children", "child", Path(folder), tags={})
with signals_as_exceptions(), run:
    run.log_metrics({"train/loss": 1.0}, 0)
    run.flush()
    run.log_metrics({"train/loss": 0.5}, 1)
    print(run.run_id, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_a_process_and_closes_its_run(
    number: signal.Signals, store: Store, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", CHILD, store.uri, str(tmp_path / "pending")]
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
from flair2_exp.tracking.run import Run
with Run() as run:
    run.log_params({"a": {"b": 1}})
    run.log_metrics({"m": 1.0}, 1)
    run.log_artifact("/nowhere", "x")
    run.log_text("t", "p")
    run.log_files({"a.json": {}})
    run.set_tags({"a": 1})
    run.describe("d")
    run.release()
    run.flush()
heavy = {"mlflow", "torch", "lightning", "matplotlib", "numpy", "requests", "pandas"}
print(sorted(heavy & set(sys.modules)))
"""
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"


def test_storing_an_epoch_takes_milliseconds(start: Start) -> None:
    run = start()
    metrics = {f"val/metric {number}": 0.5 for number in range(30)}
    begin = time.process_time()
    for epoch in range(20):
        run.log_metrics(metrics, epoch)
        run.flush()
    assert (time.process_time() - begin) / 20 < 0.2  # 20 ms measured; a slow machine is no failure
    run.finish()
