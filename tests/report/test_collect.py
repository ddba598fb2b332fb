from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from flair2_exp.errors import ConfigError, DataError, TrackingError
from flair2_exp.report import Run, read_folder, read_folders, read_mlflow
from flair2_exp.report.collect import check_comparable, read_counts, tell_rows_apart
from tests.report.made_runs import make_arrays, make_folder, make_runs

COUNTS = "confusion_per_patch.npz"


def test_run_folder_is_read(tmp_path: Path) -> None:
    arrays = make_arrays(areas=4, patches=2)
    run = read_folder(make_folder(tmp_path, "unet", 3, arrays, aug__geometry="flips"))
    assert (run.row, run.seed) == ("unet", 3)
    assert run.counts.patches == 8
    assert run.counts.confusion.shape == (4, 13, 13)
    assert run.counts.confusion.sum() == arrays["confusion"].sum()
    assert run.counts.areas == tuple(sorted(set(arrays["areas"])))
    assert run.settings["aug.geometry"] == "flips"
    assert run.settings["metadata.enabled"] == "false"
    assert run.setting == {
        "dataset": "sample", "fingerprint": "", "split": "official", "other_pixels": "drop",
    }  # fmt: skip
    assert run.metrics["train/seconds"] == 63.0
    assert run.curves["val/miou"][0][0] == 1
    assert len(run.curves["train/loss"]) == 11
    assert "val/loss" not in run.curves  # blank cells


def test_the_row_is_the_configs_name_wherever_its_folder_lies(tmp_path: Path) -> None:
    make_folder(tmp_path, "leaderboard/unet_lr=0.1", 1)
    assert read_folders([tmp_path]).runs[0].row == "leaderboard/unet_lr=0.1"


def test_folders_are_searched_in_the_order_of_numbers(tmp_path: Path) -> None:
    for seed in (10, 9, 1):
        make_folder(tmp_path, "unet", seed)
    found = read_folders([tmp_path])
    assert [run.seed for run in found.runs] == [1, 9, 10]
    assert found.absent == ()


def test_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run folder"):
        read_folders([tmp_path])


def test_run_without_counts_is_unfinished(tmp_path: Path) -> None:
    make_folder(tmp_path, "unet", 1)
    (make_folder(tmp_path, "unet", 2) / COUNTS).unlink()
    found = read_folders([tmp_path])
    assert [run.seed for run in found.runs] == [1]
    (absent,) = found.absent
    assert (absent.row, absent.seed, absent.state) == ("unet", 2, "unfinished")


@pytest.mark.parametrize("status", ["FAILED", "KILLED", "RUNNING", "TRAINED"])
def test_run_that_says_it_did_not_finish_is_absent_whatever_lies_there(
    tmp_path: Path, status: str
) -> None:
    folder = make_folder(tmp_path, "unet", 1)
    (folder / "run.json").write_text(json.dumps({"status": status, "error": "out of memory"}))
    (absent,) = read_folders([tmp_path]).absent
    assert (absent.seed, absent.state, absent.reason) == (1, status.lower(), "out of memory")


def test_finished_run_brings_identity_and_fingerprint(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "unet", 1)
    state = {"status": "FINISHED", "identity": "abc", "deciding": {"fingerprint": "f00"}}
    (folder / "run.json").write_text(json.dumps(state))
    run = read_folder(folder)
    assert (run.identity, run.setting["fingerprint"]) == ("abc", "f00")


def test_fingerprints_of_different_modalities_do_not_matter(tmp_path: Path) -> None:
    aerial, both = make_runs(tmp_path, {"a": 1.0, "b": 1.1}, seeds=1)
    aerial = dataclasses.replace(aerial, setting=dict(aerial.setting) | {"fingerprint": "images"})
    both = dataclasses.replace(
        both,
        setting=dict(both.setting) | {"fingerprint": "images and series"},
        settings=dict(both.settings) | {"model.name": "utt"},
    )
    check_comparable([aerial, both])
    with pytest.raises(ConfigError, match="fingerprints"):
        check_comparable([aerial, dataclasses.replace(both, settings=aerial.settings)])


def damage(path: Path, kind: str) -> None:
    arrays = make_arrays(areas=2, patches=2)
    changes: dict[str, dict[str, object]] = {
        "pickled": {"areas": np.array(arrays["areas"], dtype=object)},
        "negative": {"confusion": -arrays["confusion"]},
        "fractions": {"confusion": arrays["confusion"] / 2},
        "shape": {"confusion": arrays["confusion"][:-1]},
        "twice": {"patch_ids": np.array(["IMG_000001"] * 4)},
        "empty": {name: arrays[name][:0] for name in ("patch_ids", "areas", "confusion")},
    }
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:300])
    elif kind == "no archive":
        path.write_bytes(b"\0" * 300)
    elif kind == "lacking":
        del arrays["areas"]
        np.savez(path, **arrays)
    else:
        np.savez(path, **(arrays | changes[kind]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "kind",
    ["truncated", "no archive", "lacking", "pickled", "negative", "fractions", "shape", "twice",
     "empty"],
)  # fmt: skip
def test_damaged_counts_are_named(tmp_path: Path, kind: str) -> None:
    folder = make_folder(tmp_path, "unet", 1)
    damage(folder / COUNTS, kind)
    with pytest.raises(DataError, match=COUNTS):
        read_counts(folder / COUNTS)
    (absent,) = read_folders([tmp_path]).absent
    assert absent.state == "damaged"
    assert str(folder) in absent.reason


@pytest.mark.parametrize(
    ("name", "content"),
    [("config.yaml", "a: [1"), ("config.yaml", "3"), ("metrics.json", "{"),
     ("history.csv", "epoch,val/miou\n1,much\n")],
)  # fmt: skip
def test_damaged_file_beside_the_counts_is_named(tmp_path: Path, name: str, content: str) -> None:
    folder = make_folder(tmp_path, "unet", 4)
    (folder / name).write_text(content)
    (absent,) = read_folders([tmp_path]).absent
    assert (absent.row, absent.seed, absent.state) == ("unet", 4, "damaged")
    assert name in absent.reason


@pytest.mark.parametrize("key", ["dataset", "fingerprint", "split", "other_pixels"])
def test_runs_of_different_settings_are_not_compared(tmp_path: Path, key: str) -> None:
    one, other = make_runs(tmp_path, {"a": 1.0, "b": 1.1}, seeds=1)
    here = dataclasses.replace(one, setting=dict(one.setting) | {key: "here"})
    there = dataclasses.replace(other, setting=dict(other.setting) | {key: "there"})
    with pytest.raises(ConfigError, match=r"here: a.*there: b"):
        check_comparable([here, there])
    check_comparable([here, dataclasses.replace(there, setting={})])  # not recorded


def test_runs_of_other_test_patches_or_labels_are_not_compared(tmp_path: Path) -> None:
    arrays = make_arrays(areas=3)
    one = read_folder(make_folder(tmp_path, "a", 1, arrays))
    fewer = {name: each[:-1] if name != "classes" else each for name, each in arrays.items()}
    labels = arrays["confusion"].copy()
    labels[0, 0, 0] += 1
    for at, changed in enumerate((fewer, arrays | {"confusion": labels})):
        other = read_folder(make_folder(tmp_path, f"b{at}", 1, changed))
        with pytest.raises(ConfigError, match="test patches or labels"):
            check_comparable([one, other])


def test_order_of_patches_and_pixels_of_other_do_not_make_another_test_set(tmp_path: Path) -> None:
    arrays = make_arrays(areas=3)
    order = np.random.default_rng(0).permutation(12)
    turned = {name: each[order] if name != "classes" else each for name, each in arrays.items()}
    turned["confusion"][:, 12] = 0  # other_pixels=drop
    runs = [
        read_folder(make_folder(tmp_path, row, 1, each))
        for row, each in (("a", arrays), ("b", turned))
    ]
    check_comparable(runs)


class Store:
    """A sqlite store with runs as a sweep leaves them."""

    def __init__(self, folder: Path) -> None:
        self.uri = f"sqlite:///{folder / 'mlflow.db'}"
        self.folder = folder
        self.client = MlflowClient(self.uri)
        self.experiment = self.client.create_experiment("flair2", (folder / "artifacts").as_uri())

    def run(
        self, sweep: str, row: str | None, seed: int, status: str = "FINISHED", **tags: str
    ) -> str:
        named = {"flair2.sweep": sweep, "flair2.seed": str(seed), "flair2.identity": f"{row}{seed}"}
        named |= {"flair2.row": row} if row else {}
        named |= {
            "flair2.dataset": "sample",
            "flair2.metric": "13 classes, other pixels drop",
            "flair2.split": "official",
        }
        named |= {f"flair2.{key}": value for key, value in tags.items()}
        run_id: str = self.client.create_run(self.experiment, tags=named).info.run_id
        self.client.log_param(run_id, "aug.geometry", "flips")
        self.client.log_param(run_id, "metric.other_pixels", "drop")
        for step, value in ((20, 0.3), (10, 0.2), (30, 0.4)):
            self.client.log_metric(run_id, "val/miou", value, step=step)
        self.client.log_metric(run_id, "train/seconds", 5.0)
        if status == "FINISHED" and "counts" not in tags:
            path = self.folder / COUNTS
            np.savez(path, **make_arrays(row=len(row or ""), seed=seed, areas=3))  # type: ignore[arg-type]
            self.client.log_artifact(run_id, str(path), "results")
        if status != "RUNNING":
            self.client.set_terminated(run_id, status)
        return run_id


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


def test_sweep_is_read_from_mlflow_without_its_parent(store: Store) -> None:
    store.run("first", None, 0)
    ids = [store.run("first", row, seed) for row in ("unet", "utt") for seed in (1, 2)]
    store.run("other", "unet", 1)
    found = read_mlflow(store.uri, sweep="first")
    assert [(run.row, run.seed) for run in found.runs] == [
        ("unet", 1), ("unet", 2), ("utt", 1), ("utt", 2),
    ]  # fmt: skip
    run = found.runs[0]
    assert run.source == f"MLflow run {ids[0]}"
    assert run.curves["val/miou"] == [(1.0, 0.2), (2.0, 0.3), (3.0, 0.4)]
    assert run.settings["aug.geometry"] == "flips"
    assert run.setting["other_pixels"] == "drop"
    assert run.metrics["train/seconds"] == 5.0
    assert run.counts.patches == 12


def test_runs_are_found_by_tag_and_by_id(store: Store) -> None:
    run_id = store.run("it's", "unet", 1, mark="a \"quoted\" 'one'")
    assert len(read_mlflow(store.uri, tags={"flair2.mark": "a \"quoted\" 'one'"}).runs) == 1
    assert len(read_mlflow(store.uri, sweep="it's").runs) == 1
    assert len(read_mlflow(store.uri, run_ids=[run_id]).runs) == 1


def test_runs_that_did_not_finish_are_told_with_their_state(store: Store) -> None:
    for seed, status in enumerate(("FAILED", "KILLED", "RUNNING", "FINISHED"), 1):
        store.run("states", "unet", seed, status)
    found = read_mlflow(store.uri, sweep="states")
    assert [run.seed for run in found.runs] == [4]
    assert [each.state for each in found.absent] == ["failed", "killed", "running"]


def test_run_done_again_after_failing_counts_once(store: Store) -> None:
    store.run("again", "unet", 1, "FAILED")
    store.run("again", "unet", 1)
    last = store.run("again", "unet", 1)
    found = read_mlflow(store.uri, sweep="again")
    assert [run.source for run in found.runs] == [f"MLflow run {last}"]
    assert found.absent == ()


def test_runs_of_different_configs_under_one_name_are_both_read(store: Store) -> None:
    store.run("mixed", "unet", 1)
    store.run("mixed", "unet", 1, identity="another")
    assert len(read_mlflow(store.uri, sweep="mixed").runs) == 2


def with_settings(run: Run, seed: int, **settings: str) -> Run:
    dotted = {key.replace("__", "."): value for key, value in settings.items()}
    return dataclasses.replace(run, row="debug", seed=seed, settings=dict(run.settings) | dotted)


def test_rows_of_one_name_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    (run,) = make_runs(tmp_path, {"debug": 1.0}, seeds=1)
    runs = [
        with_settings(run, seed, model__name=model, aug__geometry=aug, paths__output=model + aug)
        for seed in (1, 2)
        for model, aug in (("unet", "none"), ("utt", "none"), ("utt", "flips"))
    ]
    assert [one.row for one in tell_rows_apart(runs)][:3] == [
        "debug (model.name=unet)",
        "debug (model.name=utt, aug.geometry=none)",
        "debug (model.name=utt, aug.geometry=flips)",
    ]
    assert tell_rows_apart(runs[:1]) == runs[:1]


def test_what_decides_no_result_names_no_row(tmp_path: Path) -> None:
    (run,) = make_runs(tmp_path, {"debug": 1.0}, seeds=1)
    runs = [
        with_settings(run, 1, data__workers=workers, trainer__threads=workers, optimizer__lr=lr)
        for workers, lr in (("1", "0.1"), ("2", "0.2"))
    ]
    assert [one.row for one in tell_rows_apart(runs)] == [
        "debug (optimizer.lr=0.1)", "debug (optimizer.lr=0.2)",
    ]  # fmt: skip
    for idle in ("data__workers", "dataset__root"):
        same = [with_settings(run, 1, **{idle: each}) for each in ("1", "2")]
        with pytest.raises(ConfigError, match="two runs of seed 1 and one config"):
            tell_rows_apart(same)


def test_a_config_done_twice_with_one_seed_is_refused(tmp_path: Path) -> None:
    (run,) = make_runs(tmp_path, {"debug": 1.0}, seeds=1)
    with pytest.raises(ConfigError, match="row debug has two runs of seed 1 and one config"):
        tell_rows_apart([run, dataclasses.replace(run, source="elsewhere")])


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


def test_a_database_of_another_version_is_told(store: Store, tmp_path: Path) -> None:
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
        "from flair2_exp.report import read_mlflow\n"
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


def test_server_that_does_not_answer_is_told() -> None:
    with pytest.raises(TrackingError):
        read_mlflow("http://127.0.0.1:9", sweep="leaderboard")
