from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from flair2_exp.errors import ConfigError, TrackingError
from flair2_exp.lifecycle.record import CONFIG, DECIDING, RunRecord
from flair2_exp.report.counts import read_counts
from flair2_exp.report.runs import ScoredRun
from flair2_exp.report.store import read_mlflow
from flair2_exp.tracking.tags import Tag
from tests.report.made_runs import make_arrays

COUNTS = "confusion_per_patch.npz"


class Store:
    """A sqlite store, or one on a server, with runs as a sweep leaves them."""

    def __init__(self, folder: Path, server: str = "") -> None:
        self.uri = server or f"sqlite:///{folder / 'mlflow.db'}"
        self.folder = folder
        self.client = MlflowClient(self.uri)
        place = None if server else (folder / "artifacts").as_uri()
        self.experiment = self.client.create_experiment("flair2", place)

    def run(
        self, sweep: str, row: str | None, seed: int, status: str = "FINISHED", **tags: str
    ) -> str:
        named = {Tag.SWEEP: sweep, Tag.SEED: str(seed), Tag.IDENTITY: f"{row}{seed}"}
        named |= {Tag.ROW: row} if row else {}
        named |= {Tag.METRIC: "13 classes, other pixels drop", Tag.READS: "aerial,satellite"}
        own = {str(tag): value for tag, value in named.items()}
        own |= {f"flair2.{key}": value for key, value in tags.items()}
        run_id: str = self.client.create_run(self.experiment, tags=own).info.run_id
        self.client.log_param(run_id, "aug.geometry", "flips")
        self.client.log_param(run_id, "metric.other_pixels", "drop")
        for step, value in ((20, 0.3), (10, 0.2), (30, 0.4)):
            for name in tags.get("measured", "val/miou").split(","):
                self.client.log_metric(run_id, name, value, step=step)
        self.client.log_metric(run_id, "train/seconds", 5.0)
        if status == "FINISHED" and "counts" not in tags:
            path = self.folder / COUNTS
            np.savez(path, **make_arrays(row=len(row or ""), seed=seed, areas=3))  # type: ignore[arg-type]
            self.client.log_artifact(run_id, str(path), "results")
            self.client.log_dict(run_id, {"seed": seed}, DECIDING)
        if status != "RUNNING":
            self.client.set_terminated(run_id, status)
        return run_id


def one_by_one(store: Store, runs: Sequence[ScoredRun]) -> list[ScoredRun]:
    """The runs, asked for each by itself and file by file, in MLflow's plainest words."""
    read = []
    for run in runs:
        run_id = run.record.run_id
        kept = store.client.get_run(run_id)
        counts = read_counts(Path(store.client.download_artifacts(run_id, f"results/{COUNTS}")))
        decided = Path(store.client.download_artifacts(run_id, DECIDING)).read_text()
        record = RunRecord(
            kept.data.tags, json.loads(decided), status=kept.info.status, run_id=run_id,
            scores=kept.data.metrics,
        )  # fmt: skip
        history = store.client.get_metric_history(run_id, "val/miou")
        values = [each.value for each in sorted(history, key=lambda each: each.step)]
        curves = {"val/miou": list(zip((1.0, 2.0, 3.0), values, strict=True))}
        source = f"MLflow run {run_id}"
        read.append(ScoredRun(record, counts, kept.data.params, curves, source))
    return read


def assert_same_runs(runs: Sequence[ScoredRun], others: Sequence[ScoredRun]) -> None:
    for run, other in zip(runs, others, strict=True):
        assert np.array_equal(run.counts.confusion, other.counts.confusion)
        alike = dataclasses.replace(other.counts, confusion=run.counts.confusion)
        assert run == dataclasses.replace(other, counts=alike)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


def test_sweep_is_read_from_mlflow_without_its_parent(store: Store) -> None:
    store.run("first", None, 0)
    ids = [store.run("first", row, seed) for row in ("unet", "utt") for seed in (1, 2)]
    store.run("other", "unet", 1)
    runs = read_mlflow(store.uri, sweep="first").runs
    assert [(run.row, run.seed) for run in runs] == [
        ("unet", 1), ("unet", 2), ("utt", 1), ("utt", 2),
    ]  # fmt: skip
    run = runs[0]
    assert run.source == f"MLflow run {ids[0]}"
    assert (run.record.run_id, run.record.identity) == (ids[0], "unet1")
    assert run.curves["val/miou"] == [(1.0, 0.2), (2.0, 0.3), (3.0, 0.4)]
    assert run.settings["aug.geometry"] == "flips"
    assert run.tag(Tag.METRIC) == "13 classes, other pixels drop"
    assert run.tag(Tag.READS) == "aerial,satellite"
    assert run.record.scores["train/seconds"] == 5.0
    assert run.counts.patches == 12


def test_settings_are_those_of_the_stored_config_and_not_of_the_few_parameters(
    store: Store,
) -> None:
    run_id = store.run("configured", "unet", 1)
    store.client.log_text(run_id, "aug: {geometry: dihedral}\nseed: 1\n", CONFIG)
    (run,) = read_mlflow(store.uri, sweep="configured").runs
    assert run.settings == {"aug.geometry": "dihedral", "seed": "1"}


def test_many_runs_are_read_as_each_by_itself(store: Store) -> None:
    for row in ("unet", "utt"):
        for seed in (1, 2):
            store.run("many", row, seed)
    runs = read_mlflow(store.uri, sweep="many").runs
    assert len(runs) == 4
    assert [run.record.deciding for run in runs] == [{"seed": 1}, {"seed": 2}] * 2
    assert_same_runs(runs, one_by_one(store, runs))


@pytest.mark.parametrize(
    ("measured", "drawn"),
    [
        (("val/loss,val/miou", "val/loss,val/miou"), ({"val/miou"}, {"val/miou"})),
        (("val/loss", "val/loss,val/miou"), (set(), {"val/miou"})),
        (("val/loss", "val/loss,train/loss"), ({"val/loss"}, {"val/loss"})),
        (("train/loss", "test/miou"), (set(), set())),
    ],
)
def test_the_metric_that_is_drawn_is_the_one_whose_course_is_read(
    measured: tuple[str, str], drawn: tuple[set[str], set[str]], store: Store
) -> None:
    sweep = " ".join(measured)
    for seed, names in enumerate(measured):
        store.run(sweep, "unet", seed, measured=names)
    runs = read_mlflow(store.uri, sweep=sweep).runs
    assert tuple(set(run.curves) for run in runs) == drawn
    assert all(len(curve) == 3 for run in runs for curve in run.curves.values())


def test_what_all_runs_have_is_asked_for_once_and_courses_where_they_are_drawn(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(5):
        store.run("counted", "unet", seed)
    asked: list[str] = []
    for name in ("search_runs", "get_run", "get_experiment", "get_metric_history"):
        own = getattr(MlflowClient, name)

        def noted(*arguments: Any, own: Any = own, name: str = name, **options: Any) -> Any:
            asked.append(name)
            return own(*arguments, **options)

        monkeypatch.setattr(MlflowClient, name, noted)
    assert not any(run.curves for run in read_mlflow(store.uri, sweep="counted", curves=False).runs)
    assert asked == ["search_runs", "get_experiment"]
    asked.clear()
    assert all(run.curves for run in read_mlflow(store.uri, sweep="counted").runs)
    assert asked == ["search_runs", "get_experiment", *["get_metric_history"] * 5]


def test_a_store_that_cannot_be_written_is_read(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = store.run("read only", "unet", 1)
    database = Path(store.uri.removeprefix("sqlite:///"))
    opened: list[str] = []
    connect = sqlite3.connect

    def noting(name: object, *arguments: Any, **options: Any) -> sqlite3.Connection:
        opened.append(str(name))
        return connect(name, *arguments, **options)  # type: ignore[arg-type]

    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: path != database.parent and access(path, mode)
    )
    monkeypatch.setattr("flair2_exp.report.store.sqlite3.connect", noting)
    (run,) = read_mlflow(store.uri, sweep="read only").runs
    assert run.source == f"MLflow run {run_id}"
    assert opened
    assert not [name for name in opened if str(database.parent) in name]


def test_runs_are_found_by_tag_and_by_id(store: Store) -> None:
    run_id = store.run("it's", "unet", 1, mark="a \"quoted\" 'one'")
    assert len(read_mlflow(store.uri, tags={"flair2.mark": "a \"quoted\" 'one'"}).runs) == 1
    assert len(read_mlflow(store.uri, sweep="it's").runs) == 1
    assert len(read_mlflow(store.uri, run_ids=[run_id]).runs) == 1


def test_runs_that_did_not_finish_are_absent_with_their_state(store: Store) -> None:
    for seed, status in enumerate(("FAILED", "KILLED", "RUNNING", "FINISHED"), 1):
        error = {"error": "lost the disk"} if status == "FAILED" else {}
        store.run("states", "unet", seed, status, **error)
    runs = read_mlflow(store.uri, sweep="states")
    assert [run.seed for run in runs.runs] == [4]
    assert [each.state for each in runs.absent] == ["failed", "killed", "running"]
    assert [each.reason.split()[0] for each in runs.absent] == ["lost", "MLflow", "MLflow"]


def test_run_done_again_after_failing_counts_once(store: Store) -> None:
    store.run("again", "unet", 1, "FAILED")
    store.run("again", "unet", 1)
    last = store.run("again", "unet", 1)
    runs = read_mlflow(store.uri, sweep="again")
    assert [run.source for run in runs.runs] == [f"MLflow run {last}"]
    assert runs.absent == ()


def test_runs_of_different_configs_under_one_name_are_both_read(store: Store) -> None:
    store.run("mixed", "unet", 1)
    store.run("mixed", "unet", 1, identity="another")
    assert len(read_mlflow(store.uri, sweep="mixed").runs) == 2


def test_missing_artifact_is_named(store: Store) -> None:
    run_id = store.run("bare", "unet", 1, counts="none")
    (absent,) = read_mlflow(store.uri, sweep="bare").absent
    assert absent.state == "damaged"
    assert run_id in absent.reason
    assert COUNTS in absent.reason


def test_damaged_artifact_is_named_by_its_run_and_not_by_a_temporary_file(store: Store) -> None:
    run_id = store.run("torn", "unet", 1, counts="torn")
    path = store.folder / COUNTS
    path.write_bytes(b"PK\x03\x04 torn")
    store.client.log_artifact(run_id, str(path), "results")
    (absent,) = read_mlflow(store.uri, sweep="torn").absent
    assert f"MLflow run {run_id}: results/{COUNTS} is damaged" in absent.reason


def test_unknown_sweep_and_run_are_refused(store: Store) -> None:
    with pytest.raises(ConfigError, match=r"no run with flair2\.sweep=nothing"):
        read_mlflow(store.uri, sweep="nothing")
    with pytest.raises(TrackingError, match="abc"):
        read_mlflow(store.uri, run_ids=["abc"])
    parent = store.run("parents", None, 0)
    with pytest.raises(ConfigError, match=parent):  # a sweep's own run
        read_mlflow(store.uri, run_ids=[parent])
    with pytest.raises(ConfigError, match="a sweep, a tag or run ids"):
        read_mlflow(store.uri)


def test_mistyped_database_is_refused_and_not_made(tmp_path: Path) -> None:
    path = tmp_path / "mlfow.db"
    with pytest.raises(TrackingError, match=r"mlfow\.db"):
        read_mlflow(f"sqlite:///{path}", sweep="leaderboard")
    assert not path.exists()


@pytest.mark.parametrize("content", [b"", b"no database", b"another"])
def test_a_file_that_holds_no_runs_is_refused_and_left_alone(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "some.db"
    path.write_bytes(content)
    if content == b"another":
        path.unlink()
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE anything (number)")
    before = path.read_bytes()
    with pytest.raises(TrackingError, match=r"no MLflow database .*some\.db"):
        read_mlflow(f"sqlite:///{path}", sweep="leaderboard")
    assert path.read_bytes() == before


def test_a_database_of_another_version_is_named(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "newer.db"
    with (
        contextlib.closing(sqlite3.connect(store.uri.removeprefix("sqlite:///"))) as source,
        contextlib.closing(sqlite3.connect(path)) as copy,
    ):
        source.backup(copy)
        copy.execute("UPDATE alembic_version SET version_num = '0123456789ab'")
        copy.commit()
    with pytest.raises(TrackingError, match="mlflow db upgrade"):
        read_mlflow(f"sqlite:///{path}", sweep="leaderboard")


def test_a_report_sends_no_usage_statistics_and_shows_no_progress(store: Store) -> None:
    store.run("quiet", "unet", 1)
    program = (
        "from flair2_exp.report.store import read_mlflow\n"
        f"read_mlflow({store.uri!r}, sweep='quiet')\n"
        "import mlflow.telemetry\n"
        "print(mlflow.telemetry.get_telemetry_client())\n"
    )
    quiet = {"MLFLOW_DISABLE_TELEMETRY", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "CI"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True,
        env={name: value for name, value in os.environ.items() if name not in quiet},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("None\n", "")


def test_server_that_does_not_answer_is_named() -> None:
    with pytest.raises(TrackingError):
        read_mlflow("http://127.0.0.1:9", sweep="leaderboard")
