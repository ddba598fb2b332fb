"""No file that a command reads can run code: each input here would leave a marker if it did."""

from __future__ import annotations

import io
import json
import os
import pickle
import stat
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from flair2_exp.data.download import unpack
from flair2_exp.errors import DataError
from flair2_exp.lifecycle.record import FORMAT
from flair2_exp.optuna_sweeper import SweepError
from flair2_exp.optuna_sweeper.storage import open_storage
from flair2_exp.report.folders import read_folders
from tests.commands import answer
from tests.configs import SMALL_SAMPLE

BASE = ("preset=debug", "trainer=cpu", "data.workers=0", "tracking=off", *SMALL_SAMPLE)
MARKER = "executed"


class Evil:
    """Leaves the marker when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.command = f"touch {folder / MARKER}"

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, in which commands are given."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_marker_is_left_by_what_does_run(place: Path) -> None:
    pickle.loads(pickle.dumps(Evil(place)))
    assert (place / MARKER).exists()


def _refused(place: Path, *line: str) -> str:
    done = answer(*BASE, *line)
    assert not (place / MARKER).exists(), line
    assert done.status in (1, 2), done
    assert "Traceback" not in done.err
    return done.err


@pytest.mark.parametrize("option", ["checkpoint", "model.weights"])
@pytest.mark.parametrize("form", ["torch", "zipped", "pickle", "joblib"])
def test_checkpoints_and_weights_are_data(place: Path, option: str, form: str) -> None:
    path, content = place / "evil.ckpt", {"state_dict": Evil(place), "epoch": 1}
    if form in ("torch", "zipped"):
        torch.save(content, path, _use_new_zipfile_serialization=form == "zipped")
    else:
        path.write_bytes(pickle.dumps(content, protocol=2 if form == "pickle" else 4))
    assert "evil.ckpt" in _refused(place, f"{option}={path}")


@pytest.mark.parametrize(
    "text",
    [
        "name: !!python/object/apply:os.system ['touch {marker}']\n",
        "name: !!python/object/new:os.system ['touch {marker}']\n",
        "name: !!python/name:os.system\n",
    ],
)
def test_config_files_are_data(place: Path, text: str) -> None:
    folder = place / "conf" / "experiment"
    folder.mkdir(parents=True)
    text = text.replace("{marker}", str(place / MARKER))
    (folder / "evil.yaml").write_text(f"# @package _global_\n{text}")
    with suppress(yaml.YAMLError):  # its words are shown by the tests of config files
        _refused(place, f"experiment={folder}/evil.yaml")
    assert not (place / MARKER).exists()
    (place / "split.yaml").write_text(text.replace("name", "train"))
    _refused(place, "split=file", f"split.file={place}/split.yaml")


@pytest.mark.parametrize(
    "override",
    [
        "optimizer._target_=os.system", "+optimizer.options._target_=os.system",
        "scheduler._target_=os.system", "+scheduler._target_=subprocess.call",
        "loss._target_=os.system", "+loss._target_=builtins.eval", "model._target_=os.system",
        "+trainer._target_=os.system", "+callbacks._target_=os.system",
    ],
)  # fmt: skip
def test_a_target_is_of_the_kind_that_its_place_takes(place: Path, override: str) -> None:
    _refused(place, override)


def test_a_study_is_data(place: Path) -> None:
    for content in (pickle.dumps(Evil(place)), json.dumps({"py/reduce": ["os.system"]}).encode()):
        (place / "study").write_bytes(content)
        with pytest.raises(SweepError):
            open_storage(str(place / "study"))
        assert not (place / MARKER).exists()


def test_the_rerun_of_hydra_which_would_unpickle_is_refused(place: Path) -> None:
    (place / "config.pickle").write_bytes(pickle.dumps(Evil(place)))
    assert "--experimental-rerun" in _refused(place, f"--experimental-rerun={place}/config.pickle")


def test_what_a_report_reads_is_data(place: Path) -> None:
    run = place / "run"
    run.mkdir()
    evil = np.empty(1, dtype=object)
    evil[0] = Evil(place)
    np.savez(run / "confusion_per_patch.npz", patch_ids=evil, areas=evil, confusion=evil)
    (run / "config.yaml").write_text(
        f"name: !!python/object/apply:os.system ['touch {place / MARKER}']\n"
    )
    record = {"format": FORMAT, "tags": {}, "status": "FINISHED"}
    (run / "run.json").write_text(json.dumps(record))
    runs = read_folders([run])
    assert not runs.runs
    (run / "config.yaml").write_text("name: a\n")
    (absent,) = read_folders([run]).absent
    assert "confusion_per_patch.npz" in absent.reason
    assert not (place / MARKER).exists()


@pytest.mark.parametrize("file", ["store.json", "index.npz"])
def test_a_prepared_store_is_data(place: Path, file: str) -> None:
    store = place / "store"
    store.mkdir()
    evil = np.empty(1, dtype=object)
    evil[0] = Evil(place)
    (store / "store.json").write_bytes(
        pickle.dumps(Evil(place))
        if file == "store.json"
        else json.dumps({"format": 2, "shard": 128, "settings": {}}).encode()
    )
    np.savez(store / "index.npz", ids=evil, areas=evil)
    _refused(place, f"dataset.store={store}")


@pytest.mark.parametrize("kind", ["upwards", "absolute", "link", "setuid"])
def test_an_archive_writes_only_plain_files_and_only_in_its_folder(place: Path, kind: str) -> None:
    name = {"upwards": f"../{MARKER}", "absolute": str(place / MARKER)}.get(kind, "a")
    entry = zipfile.ZipInfo(name)
    if kind == "link":
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    if kind == "setuid":
        entry.external_attr = (stat.S_IFREG | 0o4777) << 16
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as zipped:
        zipped.writestr(entry, str(place / MARKER))
    (place / "evil.zip").write_bytes(content.getvalue())
    folder = place / "work"
    if kind == "setuid":
        members = unpack.inspect(place / "evil.zip", 10**6)
        unpack.unpack(place / "evil.zip", members, folder, lambda *_: None)
        assert stat.S_IMODE((folder / "a").stat().st_mode) & 0o7111 == 0
    else:
        with pytest.raises(DataError):
            unpack.inspect(place / "evil.zip", 10**6)
    assert not (place / MARKER).exists()


def test_a_record_of_a_run_is_data(place: Path) -> None:
    (place / "run").mkdir()
    (place / "run" / "run.json").write_bytes(pickle.dumps(Evil(place)))
    assert "run.json" in _refused(place, "hydra.run.dir=run")
