"""A store that was moved or copied: its artifacts are where it lies now, and nowhere else."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pytest

from flair2_exp.tracking.relocation import moved, place_now
from flair2_exp.tracking.run import Run, open_run
from flair2_exp.tracking.store import Store, local_uri, open_store
from flair2_exp.tracking.tags import Tag

if TYPE_CHECKING:
    from mlflow import MlflowClient


@pytest.mark.parametrize(
    ("path", "old", "new", "now"),
    [
        ("/a/one/mlruns/x", "/a/one/mlruns", "/b/two/mlruns", "/b/two/mlruns/x"),
        ("/a/one/outputs/x", "/a/one/mlruns", "/b/two/mlruns", "/b/two/outputs/x"),
        ("/a/one/mlruns/m.db", "/a/one/outputs/u/1", "/b/outputs/u/1", "/b/mlruns/m.db"),
        ("/a/other/x", "/a/one/mlruns", "/b/two/mlruns", "/a/other/x"),
        ("/a/one/mlruns/m.db", "/a/one/run", "/a/two/other", "/a/one/mlruns/m.db"),
        ("/a/one/x", "/a/one", "/a/one", "/a/one/x"),
    ],
)
def test_what_lay_around_a_folder_has_moved_with_it(
    path: str, old: str, new: str, now: str
) -> None:
    assert moved(Path(path), Path(old), Path(new)) == Path(now)


def test_a_copy_never_leads_to_what_belongs_to_its_original(tmp_path: Path) -> None:
    one, two = tmp_path / "one" / "run", tmp_path / "two" / "run"
    store = tmp_path / "one" / "mlruns" / "mlflow.db"
    store.parent.mkdir(parents=True)
    store.touch()
    assert place_now(store, one, two) == store  # the run's folder alone has moved
    one.mkdir()
    assert place_now(store, one, two) == tmp_path / "two" / "mlruns" / "mlflow.db"


def opened(root: Path) -> Store:
    return open_store(local_uri(root / "mlruns"))


def run_in(root: Path, name: str, experiment: str = "flair2") -> Run:
    """A finished run with a folder and an artifact."""
    folder = root / "outputs" / name
    folder.mkdir(parents=True)
    tags = {Tag.FOLDER: folder, Tag.BEST_CHECKPOINT: folder / "checkpoints" / "best.ckpt"}
    with open_run(opened(root), experiment, name, folder / "unsent", tags=tags) as run:
        run.log_text(name, "texts/name.txt")
        run.describe(f"Folder: `{folder}`")
    return run


def kept(store: Store, run: Run) -> Any:
    return store.call("reading", lambda client: client.get_run(run.run_id))


def place(store: Store, run: Run) -> Path:
    return Path(unquote(urlsplit(kept(store, run).info.artifact_uri).path))


def forget_root(root: Path) -> None:
    """Leave a store as an earlier version made it."""
    with contextlib.closing(sqlite3.connect(root / "mlruns" / "mlflow.db")) as connection:
        connection.execute("DELETE FROM experiment_tags WHERE key = ?", (str(Tag.FOLDER),))
        connection.commit()


def files(root: Path) -> dict[str, bytes]:
    paths = [path for path in root.rglob("*") if path.is_file() and "mlflow.db-" not in path.name]
    return {str(path): path.read_bytes() for path in paths}


@pytest.mark.parametrize("prepare", [lambda root: None, forget_root], ids=["", "earlier version"])
@pytest.mark.parametrize("names", [("one", "two"), ("a #1, é", "b 'c'")], ids=str)
def test_a_copy_keeps_its_artifacts_in_itself_and_leaves_the_original_alone(
    names: tuple[str, str], prepare: Callable[[Path], None], tmp_path: Path
) -> None:
    one, two = (tmp_path / name for name in names)
    old = run_in(one, "old")
    prepare(one)
    shutil.copytree(one, two)
    before = files(one)
    new = run_in(two, "new")
    assert files(one) == before
    store = opened(two)
    for run, name in ((old, "old"), (new, "new")):
        assert (place(store, run) / "texts" / "name.txt").read_text() == name
        assert place(store, run).is_relative_to(two / "mlruns" / "artifacts")
        tags = kept(store, run).data.tags
        assert tags[Tag.FOLDER] == str(two / "outputs" / name)
        assert tags[Tag.BEST_CHECKPOINT].startswith(f"{two}/outputs/{name}/")
        assert str(one) not in tags[Tag.DESCRIPTION]
    assert place(opened(one), old).is_relative_to(one)


def test_a_moved_store_is_told_each_time_and_the_old_place_is_not_made_again(
    tmp_path: Path,
) -> None:
    runs = []
    for number in range(3):
        root = tmp_path / f"place {number}"
        if runs:
            (tmp_path / f"place {number - 1}").rename(root)
        runs.append(run_in(root, f"run {number}", experiment=("flair2", "Default")[number % 2]))
    assert [path.name for path in tmp_path.iterdir()] == ["place 2"]
    store = opened(root)
    for number, run in enumerate(runs):
        assert (place(store, run) / "texts" / "name.txt").read_text() == f"run {number}"


def test_a_store_that_moved_alone_does_not_change_what_its_runs_say_of_their_folders(
    tmp_path: Path,
) -> None:
    run = run_in(tmp_path / "one", "run")
    (tmp_path / "two").mkdir()
    (tmp_path / "one" / "mlruns").rename(tmp_path / "two" / "mlruns")
    store = opened(tmp_path / "two")
    assert place(store, run).is_relative_to(tmp_path / "two")
    assert kept(store, run).data.tags[Tag.FOLDER] == str(tmp_path / "one" / "outputs" / "run")


def test_another_name_of_the_same_folder_is_not_another_place(tmp_path: Path) -> None:
    run = run_in(tmp_path / "one", "run")
    (tmp_path / "link").symlink_to(tmp_path / "one")
    assert place(opened(tmp_path / "link"), run).is_relative_to(tmp_path / "one")


def test_artifacts_in_a_place_of_the_users_stay_there(tmp_path: Path) -> None:
    store = opened(tmp_path / "one")
    elsewhere = (tmp_path / "disk" / "artifacts" / "big").as_uri()
    store.call("making", lambda client: client.create_experiment("big", elsewhere))
    run = run_in(tmp_path / "one", "run", experiment="big")
    (tmp_path / "one").rename(tmp_path / "two")
    assert place(opened(tmp_path / "two"), run).is_relative_to(tmp_path / "disk")


def test_a_store_that_is_only_read_finds_its_artifacts_where_it_lies(tmp_path: Path) -> None:
    run = run_in(tmp_path / "one", "run")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    shutil.rmtree(tmp_path / "one" / "mlruns" / "artifacts")
    folder = tmp_path / "two" / "mlruns"
    store = Store(local_uri(folder), folder=folder, timeout=1.0)

    def text(client: MlflowClient) -> str:
        with store.artifact(client, client.get_run(run.run_id), "texts/name.txt") as path:
            return path.read_text()

    assert store.call("reading", text) == "run"
