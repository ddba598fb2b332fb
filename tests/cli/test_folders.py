"""Where results may go: never among the system's, the code's or another program's files."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from flair2_exp.lifecycle.folder import (
    Footprint,
    RunFolder,
    require_own,
    require_own_sweep,
    require_place,
)
from tests.commands import answer
from tests.configs import SMALL_SAMPLE

ROOT = Path(__file__).parents[2]
BASE = ("preset=debug", "trainer=cpu", "data.workers=0")
MANY = ("--multirun", "seed=1,2")
SEARCH = ("tune=unet",)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with another program's files, which the command is given in."""
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("other: 1\n")
    (tmp_path / ".hydra" / "hydra.yaml").write_text("hydra: {job: {name: other}}\n")
    (tmp_path / "flair2_exp.log").write_text("another's\n")
    (tmp_path / "multirun.yaml").write_text("hydra: {job: {name: other}}\n")
    (tmp_path / "file").write_text("text")
    (tmp_path / "empty").mkdir()
    for name in ("run.json", "metrics.json"):
        (tmp_path / "theirs").mkdir(exist_ok=True)
        (tmp_path / "theirs" / name).write_text('{"a": 1}')
    (tmp_path / "db").mkdir()
    with closing(sqlite3.connect(tmp_path / "db" / "mlflow.db")) as database:
        database.execute("CREATE TABLE anything (a)")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _tree(folder: Path) -> dict[str, bytes | None]:
    paths = sorted(folder.rglob("*"))
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("hydra.run.dir=.", "not from a run of this program"),
        ("hydra.run.dir=theirs", "not from a run of this program"),
        ("hydra.run.dir=/", "a folder of the system's"),
        ("hydra.run.dir=/etc/flair2", "a folder of the system's"),
        ("hydra.run.dir=/tmp", "a folder of the system's"),
        (f"hydra.run.dir={Path.home()}", "a home|a folder of the system's"),
        (f"hydra.run.dir={ROOT}", "a folder of the code"),
        (f"hydra.run.dir={ROOT}/flair2_exp/x", "a folder of the code"),
        ("hydra.run.dir=empty dataset=flair2 dataset.root=/nowhere", "/nowhere"),
        ("hydra.run.dir=empty/a/b dataset=flair2 dataset.root=/nowhere", "/nowhere"),
        ("hydra.run.dir=file/x", "Not a directory"),
        ("paths.mlflow=db", "and stays as it is"),
        ("paths.mlflow=/proc/x", "cannot be written"),
        ("paths.mlflow=file", "cannot be written"),
        ("dataset.store=theirs", "is not a prepared store"),
        ("split=file split.file=file", "must hold lists"),
        ("tracking=server tracking.uri=http://127.0.0.1:9", "does not answer"),
    ],
)
def test_a_refused_run_leaves_every_file_as_it_was(line: str, message: str, place: Path) -> None:
    _refused(place, line.split(), message)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("hydra.sweep.dir=/", "a folder of the system's"),
        ("hydra.sweep.dir=/usr/flair2", "a folder of the system's"),
        (f"hydra.sweep.dir={Path.home()}", "a home|a folder of the system's"),
        (f"hydra.sweep.dir={ROOT}", "a folder of the code"),
        ("hydra.sweep.dir=.", "is not empty, and holds no sweep"),
        ("hydra.sweep.dir=theirs", "is not empty, and holds no sweep"),
        ("hydra/launcher=joblib hydra.launcher.n_jobs=0", "n_jobs=0: expected 1 to"),
        ("hydra/launcher=joblib hydra.launcher.prefer=foo", "prefer=foo"),
        ("hydra/launcher=joblib hydra.launcher.pre_dispatch=foo", "pre_dispatch=foo"),
        ("hydra/launcher=submitit_slurm", "has no srun"),
        ("paths.mlflow=db", "and stays as it is"),
        ("paths.mlflow=/proc/x", "cannot be written"),
        ("tracking=server tracking.uri=http://127.0.0.1:9", "does not answer"),
    ],
)
@pytest.mark.parametrize("many", [MANY, SEARCH], ids=["sweep", "search"])
def test_refused_many_runs_leave_every_file_as_it_was(
    many: tuple[str, ...], line: str, message: str, place: Path
) -> None:
    if "srun" in message and shutil.which("srun"):
        pytest.skip("SLURM is here")
    _refused(place, [*many, *line.split()], message)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--multirun seed=1 hydra.sweeper.max_batch_size=-1", "expected 1 or more"),
        ("--multirun seed=1 hydra.sweeper.max_batch_size=0", "expected 1 or more"),
        ("tune=unet tune.storage=file", "and stays as it is"),
        ("tune=unet tune.storage=/dev/null", "and stays as it is"),
        ("tune=unet tune.storage=sqlite:///db/mlflow.db", "and stays as it is"),
        ("tune=unet tune.storage=postgresql://me@127.0.0.1:9/db", "storage postgresql://***@"),
        ("tune=unet tune.storage=nosuch://host/db", "not a database URL"),
    ],
)
def test_what_only_a_sweep_or_a_search_has_is_refused_likewise(
    line: str, message: str, place: Path
) -> None:
    _refused(place, line.split(), message)


def _refused(place: Path, line: list[str], message: str) -> None:
    sample = () if "dataset=flair2" in line else SMALL_SAMPLE
    before = _tree(place)
    done = answer(*BASE, *sample, *line)
    assert done.status == 1
    assert any(each in done.err for each in message.split("|")), done.err
    assert len(done.err.strip().splitlines()) <= 2
    assert _tree(place) == before


def test_results_go_where_a_user_would_put_them(tmp_path: Path) -> None:
    for folder in (tmp_path, ROOT / "outputs" / "x", ROOT / "multirun", Path("/usr/local/x/y"),
                   Path("/dev/shm/run"), Path("/tmp/run")):  # fmt: skip
        require_place(folder)


@pytest.mark.parametrize("left", [".hydra/hydra.yaml", ".lock", "run.json"])
def test_a_run_of_ours_is_resumed_however_far_it_came(left: str, tmp_path: Path) -> None:
    texts = {".lock": "process 12 on host\n", "run.json": '{"tags": {"flair2.row": "a"}}'}
    (tmp_path / left).parent.mkdir(exist_ok=True)
    (tmp_path / left).write_text(texts.get(left, "hydra:\n  job:\n    name: flair2_exp\n"))
    (tmp_path / "flair2_exp.log").write_text("ours\n")
    require_own(RunFolder(tmp_path))
    sweep = tmp_path / "sweep"
    shutil.copytree(tmp_path, sweep / "seed=1")
    require_own_sweep(sweep)


def test_a_search_and_its_second_worker_share_a_folder(tmp_path: Path) -> None:
    for name in ("study.db", "study.db-wal", "data", ".lock"):
        (tmp_path / name).touch()
    require_own_sweep(tmp_path, [tmp_path / "study.db", tmp_path / "data"])
    (tmp_path / "notes.txt").touch()
    (tmp_path / "optuna.journal.lock").touch()
    require_own_sweep(tmp_path)


def test_only_what_a_refused_run_has_made_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "run"
    new = Footprint.of(folder)
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").touch()
    new.restore()
    assert list(tmp_path.iterdir()) == []
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "mine.yaml").touch()
    (folder / "flair2_exp.log").write_text("of an earlier start\n")
    known = Footprint.of(folder)
    (folder / ".hydra" / "config.yaml").touch()
    (folder / ".lock").touch()
    known.restore()
    assert sorted(path.name for path in folder.rglob("*")) == [
        ".hydra", "flair2_exp.log", "mine.yaml",
    ]  # fmt: skip
