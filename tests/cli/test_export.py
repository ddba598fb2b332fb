"""The verb `export`, on one tracked run."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

from flair2_exp.cli.verbs import VERBS
from flair2_exp.errors import ConfigError, FlairError, TrackingError, UsageError
from flair2_exp.inference.predictor import Predictor
from flair2_exp.lifecycle.experiment import run
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.report.counts import read_counts
from flair2_exp.report.statistics import row_counts, scores
from tests.configs import SMALL_SAMPLE, compose_config

OVERRIDES = (
    "preset=tiny", "trainer=cpu", "trainer.max_epochs=1", "model=unet", "data=aerial_only",
    "data.workers=0", *SMALL_SAMPLE,
    "dataset.sample.areas_per_domain=6", "dataset.sample.patches_per_area=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("export")
    run(compose_config(f"paths.root={root}", *OVERRIDES), root / "run", OVERRIDES)
    return root / "run"


pytestmark = pytest.mark.slow


def test_safetensors_come_with_a_card_of_scores_and_intervals_and_predict_as_the_run(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "net.safetensors"
    assert VERBS["export"]([str(folder), "--out", str(out)]) == 0
    assert "net.md is its card" in capsys.readouterr().out
    card = out.with_suffix(".md").read_text()
    assert "Scores on the synthetic sample: they say nothing about real land cover." in card
    counts = read_counts(RunFolder(folder).confusion)
    by_hand = scores([row_counts("", [counts.confusion])])[0][0, 0]
    line = next(each for each in card.splitlines() if each.startswith("| mIoU |"))
    value, low, high = (float(each) for each in re.findall(r"[\d.]+", line))
    assert value == pytest.approx(by_hand, abs=1e-4)
    assert low <= value <= high
    record = json.loads(RunFolder(folder).record.read_text())
    assert record["tags"]["flair2.identity"] in card
    assert record["tags"]["flair2.dataset_fingerprint"] in card
    one, other = (Predictor.from_run(each, device="cpu") for each in (folder, out))
    image = np.random.default_rng(0).integers(0, 256, (5, 64, 64)).astype(np.uint8)
    np.testing.assert_array_equal(
        one.predict(image).probabilities, other.predict(image).probabilities
    )


def test_the_scores_of_a_run_are_not_those_of_its_other_checkpoints(
    folder: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(folder, tmp_path / "run")
    shutil.copy(RunFolder(copy).best, RunFolder(copy).last)
    out = tmp_path / "net.safetensors"
    VERBS["export"]([str(RunFolder(copy).last), "--format", "safetensors", "--out", str(out)])
    card = out.with_suffix(".md").read_text()
    assert "This checkpoint has not been tested." in card
    assert "| mIoU |" not in card


def test_a_registered_model_predicts_as_the_run_and_a_second_version_leaves_the_first(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for version in (1, 2):
        assert VERBS["export"]([str(folder), "--register", "landcover"]) == 0
        assert f"models:/landcover/{version}" in capsys.readouterr().out
    store = json.loads(RunFolder(folder).record.read_text())["store"]
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(store)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            models = [mlflow.pyfunc.load_model(f"models:/landcover/{each}") for each in (1, 2)]
        sources = {
            mlflow.MlflowClient().get_model_version("landcover", str(each)).source
            for each in (1, 2)
        }
    finally:
        mlflow.set_tracking_uri(before)
    assert len(sources) == 2
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 64, 64)).astype(np.uint8)
    predictor = Predictor.from_run(folder, device="cpu")
    for model in models:
        found = model.predict(images)
        assert found.dtype == np.uint8
        for image, classes in zip(images, found, strict=True):
            np.testing.assert_array_equal(classes, predictor.predict(image).classes)
        with pytest.raises(Exception, match="uint8"):
            model.predict(images.astype(np.float64))


def test_a_model_is_registered_without_pickled_objects(folder: Path) -> None:
    VERBS["export"]([str(folder), "--register", "plain"])
    artifacts = folder.parent / "mlruns" / "artifacts"
    names = {each.suffix for each in artifacts.rglob("model_*/**/*") if each.is_file()}
    assert names == {"", ".py", ".txt", ".yaml", ".safetensors"}


MISTAKES: list[tuple[list[str], type[FlairError], str]] = [
    (["RUN"], UsageError, "nothing to do"),
    (["RUN", "--out", "OUT/net"], UsageError, r"ends in \.onnx or \.pt2 or \.safetensors"),
    (["RUN", "--format", "onnx"], UsageError, r"add --out FILE\.onnx"),
    (["RUN", "--format", "tflite", "--out", "OUT/n"], UsageError, "'tflite' is not one of"),
    (["RUN", "--format", "onnx", "--out", "OUT/net.bin"], UsageError, r"ends in \.onnx"),
    (["RUN", "--format", "onnx", "--out", "OUT/no/net.onnx"], ConfigError, "there is no folder"),
    (["RUN", "--format", "onnx", "--out", "/proc/net.onnx"], ConfigError, "cannot be written"),
    (["RUN", "--format", "onnx", "--out", "OUT/folder.onnx"], ConfigError, "this is a folder"),
    (["RUN", "--format", "torch", "--out", "OUT/there.pt2"], UsageError, "--overwrite"),
    (["OUT", "--format", "torch", "--out", "OUT/net.pt2"], ConfigError, "does not hold a run"),
    (["RUN", "--register", "a/b"], TrackingError, "Invalid model name 'a/b'"),
    (["RUN", "--register", "a", "--tracking-uri", "sqlite:///OUT/other.db"], ConfigError,
     "has no run .*\\n.*deliver"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "kind", "message"), MISTAKES)
def test_mistakes_are_explained_and_leave_nothing(
    words: list[str], kind: type[FlairError], message: str, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "there.pt2").write_text("an earlier file")
    (tmp_path / "folder.onnx").mkdir()
    places: dict[str, Any] = {"RUN": folder, "OUT": tmp_path}
    for name, place in places.items():
        words = [word.replace(name, str(place)) for word in words]
    with pytest.raises(kind, match=message):
        VERBS["export"](words)
    assert (tmp_path / "there.pt2").read_text() == "an earlier file"
    assert not [each for each in tmp_path.iterdir() if each.suffix in (".onnx", ".pt2", ".bin")][2:]


def test_a_checkpoint_without_a_run_is_not_registered(folder: Path, tmp_path: Path) -> None:
    shutil.copy(RunFolder(folder).best, tmp_path / "lone.ckpt")
    with pytest.raises(ConfigError, match="has no MLflow run"):
        VERBS["export"]([str(tmp_path / "lone.ckpt"), "--register", "landcover"])
