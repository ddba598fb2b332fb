"""What cannot run is refused before anything is written, and takes nothing of the user's along."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flair2_exp.errors import CheckpointError, ConfigError, DataError, FlairError, ModelError
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.locking import locked
from tests.configs import run


def _folder_with(path: Path, *names: str) -> Path:
    for name in names:
        (path / name).mkdir(parents=True)
    return path


def test_what_cannot_run_is_refused_in_two_lines_and_leaves_nothing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)  # also where there is a card
    unet = RunFolder(tmp_path / "unet")
    run(root, unet.path, "model=unet")
    foreign = tmp_path / "foreign.ckpt"
    torch.save({"weights": torch.ones(2)}, foreign)
    nothing = _folder_with(tmp_path, "empty") / "empty"
    coco = _folder_with(tmp_path / "coco", "train2017", "annotations")
    split = tmp_path / "split.yaml"
    split.write_text("train: [D006_2020]\nvalidation: []\ntest: []\n")
    other = "dataset=flair2"
    cases: list[tuple[list[str], type[FlairError], str]] = [
        ([other, f"dataset.root={tmp_path}/none"], DataError, "none"),
        ([other, f"dataset.root={nothing}"], DataError, "empty"),
        ([other, f"dataset.root={coco}"], DataError, "coco"),
        (["split=file", f"split.file={split}"], DataError, "D006_2020|validation"),
        (["dataset.sample.patch_size=72"], ConfigError, "multiples of 32"),
        (["s2_preproc.size=72"], ConfigError, "use dataset.sample.super_patch=72"),
        (["trainer=gpu"], FlairError, "trainer=cpu"),
        (["trainer.precision=16-mixed"], FlairError, "needs a GPU"),
        (["model.encoder_weights=imagenet", "model.encoder=resnet18"], ModelError, "weights"),
        (["model.encoder=resnet35"], ModelError, "resnet35"),
        ([f"checkpoint={tmp_path}/none.ckpt"], CheckpointError, "none.ckpt"),
        ([f"checkpoint={foreign}"], CheckpointError, "checkpoint of this package"),
        ([f"checkpoint={unet.best}"], CheckpointError, "of another network"),
        ([f"model.weights={foreign}"], CheckpointError, "foreign"),
        (["optimizer._target_=torch.optim.Adamm"], ConfigError, "Adamm"),
    ]  # fmt: skip
    for overrides, kind, message in cases:
        folder = root / "refused" / "run"
        with pytest.raises(kind, match=message) as refusal:
            run(root, folder, *overrides)
        assert len(str(refusal.value).splitlines()) <= 3, str(refusal.value)
        assert not folder.parent.exists(), overrides


def test_a_refused_run_takes_nothing_of_the_users_with_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = ("dataset=flair2", f"dataset.root={tmp_path}/none")
    mine = _folder_with(tmp_path, "mine", "empty") / "mine"
    (mine / "training.log").write_text("mine")
    with pytest.raises(DataError):
        run(root, mine, *nowhere)
    assert [path.name for path in mine.iterdir()] == ["training.log"]
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(DataError):
        run(root, Path("run"), *nowhere)
    assert list((tmp_path / "empty").iterdir()) == []


def test_two_processes_do_not_work_in_one_folder(root: Path, tmp_path: Path) -> None:
    with locked(tmp_path / "run"), pytest.raises(ConfigError, match="is in use by process"):
        run(root, tmp_path / "run")
    assert (tmp_path / "run").exists()
    assert "test/miou" in run(root, tmp_path / "run")
