from __future__ import annotations

import importlib.util
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from flair2_exp.errors import ConfigError, ModelError, UsageError
from flair2_exp.inference.export import export_onnx, export_program
from flair2_exp.inference.predictor import Member, Predictor
from tests.inference import export_made as made
from tests.training.helpers import PATCH

ROUNDING = 1e-4
NETWORKS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "fpn, metadata, normalised": (
        ("model=fpn", "metadata=on"),
        {"normalisation": made.NORMALISATION},
    ),
    "utae, raw series, normalised": (
        ("model=utae", "s2_preproc=raw"),
        {"normalisation": made.NORMALISATION},
    ),
    "utt, monthly series, metadata": (("model=utt", "s2_preproc=monthly", "metadata=on"), {}),
}


def _predictor(folder: Path, *overrides: str, **options: Any) -> Predictor:
    return Predictor.from_run(
        made.checkpoint(folder / "net.ckpt", *overrides, **options), device="cpu"
    )


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return _predictor(tmp_path_factory.mktemp("unet"), "model=unet")


def _run_onnx(path: Path, arrays: made.Arrays) -> Any:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return session.run(["probabilities"], {name: made.fed(arrays)[name] for name in names})[0]


@pytest.mark.thorough
@pytest.mark.parametrize("network", NETWORKS)
def test_an_onnx_file_says_of_a_padded_batch_what_the_predictor_says_of_each_patch(
    network: str, tmp_path: Path
) -> None:
    overrides, options = NETWORKS[network]
    predictor = _predictor(tmp_path, *overrides, **options)
    arrays = made.patches(3, seed=1)
    expected = made.expected(predictor, arrays)
    assert len(np.unique(expected.argmax(1))) > 1, "a network that sees nothing shows nothing"

    agreement = export_onnx(predictor, tmp_path / "net.onnx")
    found = _run_onnx(tmp_path / "net.onnx", arrays)
    np.testing.assert_allclose(found, expected, atol=ROUNDING)
    np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))
    assert agreement.largest < 1e-3
    assert agreement.pixels == 4 * PATCH**2, "a batch of one patch and one of three"


@pytest.mark.thorough
def test_a_program_says_of_a_padded_batch_what_the_predictor_says_of_each_patch(
    tmp_path: Path,
) -> None:
    predictor = _predictor(tmp_path, *NETWORKS["utt, monthly series, metadata"][0])
    arrays = made.patches(3, seed=1)
    expected = made.expected(predictor, arrays)
    export_program(predictor, tmp_path / "net.pt2")
    program = torch.export.load(tmp_path / "net.pt2").module()
    names = [name for name in arrays if name in predictor.members[0].task.spec.arguments]
    inputs = {name: torch.from_numpy(made.fed(arrays)[name]) for name in names}
    with torch.no_grad():
        np.testing.assert_allclose(program(**inputs).numpy(), expected, atol=ROUNDING)
    with zipfile.ZipFile(tmp_path / "net.pt2") as archive:
        sizes = {each.filename: each.file_size for each in archive.infolist()}
    assert not any(sizes[each] for each in sizes if "sample_inputs" in each), "they are pickled"


@pytest.mark.thorough
def test_a_network_whose_scores_depend_on_the_batch_is_exported_for_one_patch_without_padding(
    tmp_path: Path,
) -> None:
    predictor = _predictor(tmp_path, "model=utt", "s2_preproc=raw", "compat=reference")
    export_onnx(predictor, tmp_path / "net.onnx")
    arrays = made.patches(2, seed=1)
    inputs = onnx.load(tmp_path / "net.onnx").graph.input
    assert [each.name for each in inputs] == ["image", "series", "days"]
    expected = made.expected(predictor, arrays)
    for at, frames in enumerate((5, 3)):
        one = {name: each[at : at + 1] for name, each in arrays.items()}
        one |= {name: one[name][:, :frames] for name in ("series", "days")}
        found = _run_onnx(tmp_path / "net.onnx", one)[0]
        np.testing.assert_allclose(found, expected[at], atol=ROUNDING)


@pytest.mark.slow
def test_an_onnx_file_tells_deepness_and_others_how_it_is_fed(
    unet: Predictor, tmp_path: Path
) -> None:
    export_onnx(unet, tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    onnx.checker.check_model(model, full_check=True)
    values = {each.key: json.loads(each.value) for each in model.metadata_props}
    assert values["model_type"] == "Segmentor"
    assert values["class_names"] == {
        str(at): name for at, name in enumerate(unet.nomenclature.names)
    }
    assert unet.resolution is not None
    assert values["resolution"] == pytest.approx(100 * unet.resolution), "centimetres"
    assert values["tile_size"] == values["patch_size"] == PATCH
    assert values["bands"] == list(unet.bands)
    assert values["seg_thresh"] == 0, "or improbable pixels became the first class"
    shapes = {
        each.name: [axis.dim_param or axis.dim_value for axis in each.type.tensor_type.shape.dim]
        for each in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "image": ["batch", 5, PATCH, PATCH],
        "probabilities": ["batch", 13, PATCH, PATCH],
    }
    arrays = made.patches(3, seed=1)
    found, expected = _run_onnx(tmp_path / "net.onnx", arrays), made.expected(unet, arrays)
    np.testing.assert_allclose(found, expected, atol=ROUNDING)


@pytest.mark.thorough
@pytest.mark.parametrize(("export", "suffix"), [(export_onnx, "onnx"), (export_program, "pt2")])
def test_a_file_with_other_results_than_torchs_is_not_kept(
    export: Any, suffix: str, unet: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"net.{suffix}"
    path.write_text("an earlier file")
    logits = Member.logits
    monkeypatch.setattr(
        Member, "logits", lambda *given: logits(*given) + torch.arange(13.0)[:, None, None] / 100
    )
    with pytest.raises(ModelError, match=r"differ by up to 0\.\d+, where .* is rounding"):
        export(unet, path)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "an earlier file"


def test_a_network_that_no_graph_can_hold_is_named(tmp_path: Path) -> None:
    branching = f"{made.__name__}.{made.Branching.__name__}"
    predictor = _predictor(tmp_path, "model=unet", f"model._target_={branching}")
    with pytest.raises(ModelError, match=r"cannot be exported: .*\n.*--format safetensors"):
        export_program(predictor, tmp_path / "net.pt2")
    assert not (tmp_path / "net.pt2").exists()


@pytest.mark.slow
def test_images_of_16_bits_are_scaled_within_the_graph(tmp_path: Path) -> None:
    path = made.checkpoint(tmp_path / "net.ckpt", "model=unet", normalisation=made.NORMALISATION)
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"]["inputs"] |= {"image_type": "uint16", "scale": 10_000.0}
    torch.save(content, path)
    predictor = Predictor.from_run(path, device="cpu")
    assert export_program(predictor, tmp_path / "net.pt2").largest < ROUNDING


def test_ensembles_and_augmented_predictions_are_refused(unet: Predictor, tmp_path: Path) -> None:
    stored = unet.members[0].stored
    with pytest.raises(UsageError, match="an ensemble of 2 runs is not exported: name one run"):
        export_onnx(Predictor([stored, stored], device="cpu"), tmp_path / "net.onnx")
    with pytest.raises(UsageError, match="tta=d4: test-time augmentation is not exported"):
        export_onnx(Predictor([stored], symmetries="d4", device="cpu"), tmp_path / "net.onnx")


def test_chance_is_not_exported(tmp_path: Path) -> None:
    predictor = _predictor(
        tmp_path, "model=utt", "fusion.dropout=always_batch", "fusion.dropout_rate=0.5"
    )
    with pytest.raises(ModelError, match=r"fusion\.dropout=always_batch drops the satellite"):
        export_program(predictor, tmp_path / "net.pt2")


def test_without_the_extra_the_missing_packages_are_named(
    unet: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    with pytest.raises(ConfigError, match=r"onnxscript is not installed: .*flair2-exp\[onnx\]"):
        export_onnx(unet, tmp_path / "net.onnx")
