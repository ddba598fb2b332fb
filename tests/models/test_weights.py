from __future__ import annotations

import contextlib
import io
import pickle
import warnings
from pathlib import Path

import huggingface_hub.constants
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from segmentation_models_pytorch.encoders import encoders, get_encoder
from torch import Tensor

from flair2_exp.errors import CheckpointError, ModelError
from flair2_exp.models.registry import build_network
from flair2_exp.models.tensors import read_file
from flair2_exp.models.utt import UTT
from flair2_exp.models.weights import load_weights
from tests.models.helpers import build, golden_spec, golden_tensors, small_spec


@pytest.fixture(scope="module")
def released() -> dict[str, Tensor]:
    return golden_tensors("utt_small")


def _golden_model() -> UTT:
    model = build_network(golden_spec(), pretrained=False)
    assert isinstance(model, UTT)
    return model


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_released_checkpoint_loads_with_or_without_its_wrappings(
    released: dict[str, Tensor],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    prefix: str,
    wrapped: bool,
) -> None:
    caplog.set_level("INFO")
    tensors = {prefix + name: value for name, value in released.items()}
    if wrapped and prefix:
        tensors["criterion.weight"] = torch.ones(13)
    torch.save({"state_dict": tensors, "epoch": 7} if wrapped else tensors, tmp_path / "a.ckpt")
    model = _golden_model()
    load_weights(model, tmp_path / "a.ckpt")
    ours = model.state_dict()
    assert len(ours) == len(released)
    assert "compat=reference" in caplog.text
    assert torch.equal(
        ours["utae.temporal.project.weight"],
        released["arch_hr.temporal_encoder.inconv.weight"].squeeze(-1),
    )
    assert torch.equal(ours["head.conv.weight"], released["reshape_utae_output.1.weight"])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", r"1 missing: utae\.temporal\.query"),
        ("left over", r"1 left over: something\.else"),
        ("shape", r"1 of another shape: head\.conv\.bias \(19,\) instead of \(13,\)"),
    ],
)
def test_a_released_checkpoint_that_does_not_fit_is_refused_with_a_list(
    released: dict[str, Tensor], tmp_path: Path, damage: str, message: str
) -> None:
    tensors = dict(released)
    if damage == "missing":
        del tensors["arch_hr.temporal_encoder.attention_heads.Q"]
    elif damage == "left over":
        tensors["something.else"] = torch.ones(1)
    else:
        tensors["reshape_utae_output.1.bias"] = torch.ones(19)
    torch.save(tensors, tmp_path / "a.pt")
    model = _golden_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_weights(model, tmp_path / "a.pt")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["unet", "utae", "utt"])
def test_our_own_checkpoints_load(tmp_path: Path, name: str) -> None:
    spec = small_spec(name)
    first, second = build(spec, seed=1), build(spec, seed=2)
    wrapped = {f"model.{key}": value for key, value in first.state_dict().items()}
    torch.save({"state_dict": wrapped | {"loss.weight": torch.ones(13)}}, tmp_path / "a.ckpt")
    load_weights(second, tmp_path / "a.ckpt")
    for key, value in second.state_dict().items():
        assert torch.equal(value, first.state_dict()[key])


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    torch.save(build(small_spec("unet")).state_dict(), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"missing: .*left over: "):
        load_weights(build(small_spec("utae")), tmp_path / "a.pt")


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("run",))


@pytest.mark.parametrize("kind", ["pickle", "in torch.save"])
def test_a_file_that_would_run_code_is_refused(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.ckpt"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(_Evil()))
    else:
        torch.save({"state_dict": {"a": torch.ones(1)}, "hyper": _Evil()}, path)
    with pytest.raises(CheckpointError, match=r"not loaded|not a readable"):
        load_weights(build(small_spec("utae")), path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut short"])
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_damaged_files_are_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=path.name):
        load_weights(build(small_spec("utae")), path)


def _saved(kind: str) -> bytes:
    content = {
        "state_dict": {
            "model.a": torch.rand(3, 4),
            "b": torch.arange(5),
            "c": torch.rand(2).half(),
        },
        "hyper_parameters": {"model": {"name": "utt", "sizes": [1, 2.5, None, True]}},
    }
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=kind == "zip")
    return save(content["state_dict"]) if kind == "safetensors" else buffer.getvalue()


SAVED = {kind: _saved(kind) for kind in ("zip", "legacy", "safetensors")}
FLIPS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=4)


@given(
    kind=st.sampled_from(sorted(SAVED)),
    flips=FLIPS,
    cut=st.tuples(st.floats(0, 1), st.integers(0, 20)),
    kept=st.just(1.0) | st.floats(0, 1),
)
@example(kind="legacy", flips=[], cut=(0, 0), kept=0.02)  # IndexError, read past the end
@example(kind="legacy", flips=[], cut=(0, 0), kept=0.8325)  # struct.error, half a length
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_bytes_are_flipped_or_cut_a_file_is_read_or_refused(
    tmp_path: Path,
    kind: str,
    flips: list[tuple[float, int]],
    cut: tuple[float, int],
    kept: float,
) -> None:
    content = bytearray(SAVED[kind])
    for place, mask in flips:
        content[int(place * len(content))] ^= mask
    start = int(cut[0] * len(content))
    del content[start : start + cut[1]]
    del content[int(kept * len(content)) :]
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.ckpt")
    path.write_bytes(content)
    with warnings.catch_warnings(), contextlib.suppress(CheckpointError):
        warnings.simplefilter("ignore")  # torch's, of protocols that the flips make up
        read_file(path)


def test_a_missing_or_empty_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No checkpoint at"):
        load_weights(build(small_spec("utae")), tmp_path / "none.ckpt")
    torch.save({"epoch": 3}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="no named tensors"):
        load_weights(build(small_spec("utae")), tmp_path / "a.ckpt")


def _adapted(first: Tensor, channels: int) -> Tensor:
    """What smp documents: kernels repeated over the channels, scaled to the same sum."""
    repeated = first[:, [channel % 3 for channel in range(channels)]]
    return repeated * 3 / channels


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_encoder_weights_from_a_file_are_adapted_to_the_bands(tmp_path: Path, suffix: str) -> None:
    tensors = get_encoder("resnet18", weights=None).state_dict()
    path = tmp_path / f"resnet18{suffix}"
    with_head = tensors | {"fc.weight": torch.ones(10, 512), "fc.bias": torch.ones(10)}
    if suffix == ".pth":
        torch.save(with_head, path)
    else:
        save_file(with_head, path)
    model = build_network(small_spec("unet", encoder="resnet18", encoder_weights=str(path)))
    ours = model.state_dict()
    expected = _adapted(tensors["conv1.weight"], 5)
    torch.testing.assert_close(ours["encoder.conv1.weight"], expected)
    assert torch.equal(ours["encoder.layer4.1.conv2.weight"], tensors["layer4.1.conv2.weight"])


@pytest.mark.parametrize(
    ("name", "first", "last", "last_at_timm"),
    [
        ("resnet18", "conv1", "layer4.1.conv2", "layer4.1.conv2"),
        # An untrained head of its own (conv_head) beside the classifier.
        ("tf_mobilenetv3_small_minimal_100", "conv_stem", "blocks.5.0.conv", "blocks.5.0.conv"),
        # timm names a sequence's parts anew where it gives features.
        ("vgg11", "features_0", "features_18", "features.18"),
    ],
)
def test_weights_that_timm_saves_load_into_its_encoders(
    tmp_path: Path, name: str, first: str, last: str, last_at_timm: str
) -> None:
    tensors = timm.create_model(name, pretrained=False, num_classes=7).state_dict()
    torch.save(tensors, tmp_path / "a.pth")
    spec = small_spec(
        "unet", encoder=f"tu-{name}", encoder_weights=str(tmp_path / "a.pth"), bands=4
    )
    ours = build_network(spec).state_dict()
    expected = _adapted(tensors[f"{first.replace('features_', 'features.')}.weight"], 4)
    torch.testing.assert_close(ours[f"encoder.model.{first}.weight"], expected)
    assert torch.equal(ours[f"encoder.model.{last}.weight"], tensors[f"{last_at_timm}.weight"])


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_files_without_batch_counters_and_any_bands_load(tmp_path: Path, bands: int) -> None:
    tensors = get_encoder("resnet18", weights=None).state_dict()
    old = {n: t for n, t in tensors.items() if not n.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "torchvision.pth")
    spec = small_spec(
        "unet",
        encoder="resnet18",
        encoder_weights=str(tmp_path / "torchvision.pth"),
        bands=bands,
    )
    expected = get_encoder("resnet18", weights=None)
    expected.load_state_dict(tensors)
    expected.set_in_channels(bands, pretrained=True)  # smp's own way
    ours = build_network(spec).state_dict()
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(ours[f"encoder.{name}"], tensor)


FIVE = ("red", "green", "blue", "nir", "elevation")


@pytest.mark.parametrize(
    ("names", "filters"),
    [
        (FIVE, [0, 1, 2, 0, 1]),  # as smp's
        (("red", "green", "blue", "nir"), [0, 1, 2, 0]),
        (("nir", "green", "blue"), [0, 1, 2]),
        (("nir", "red", "green"), [0, 1, 2]),
        (("nir", "red", "green", "blue"), [0, 0, 1, 2]),
        (("elevation", "blue", "green", "red", "nir"), [0, 2, 1, 0, 1]),
        (("nir", "elevation", "red", "green"), [2, 0, 0, 1]),  # the blue one first: it is left
    ],
    ids=str,
)
@pytest.mark.parametrize("source", ["file", "imagenet"])
@pytest.mark.parametrize("encoder", ["resnet18", "tu-resnet18"])
def test_each_band_gets_the_filter_of_its_name(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: tuple[str, ...],
    filters: list[int],
    source: str,
    encoder: str,
) -> None:
    tensors = timm.create_model("resnet18").state_dict()  # named as smp's
    if source == "file":
        weights = str(tmp_path / "a.pth")
        torch.save(tensors, weights)
    else:
        weights = "imagenet"
        _serve(monkeypatch, tmp_path, tensors)
    spec = small_spec(
        "unet", encoder=encoder, encoder_weights=weights, bands=len(names), band_names=names
    )
    ours = build_network(spec).state_dict()
    name = "encoder.conv1.weight" if encoder == "resnet18" else "encoder.model.conv1.weight"
    expected = tensors["conv1.weight"][:, filters]
    if len(names) > 3:
        expected = expected * (3 / len(names))
    assert torch.equal(ours[name], expected)


def _serve(monkeypatch: pytest.MonkeyPatch, folder: Path, tensors: dict[str, Tensor]) -> None:
    """Stand for the hub: smp and timm get these tensors for ImageNet's."""
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")
    smp_tensors = {n: t for n, t in tensors.items() if not n.startswith("fc.")}
    save_file({n: t.contiguous() for n, t in smp_tensors.items()}, folder / "smp.safetensors")
    monkeypatch.setattr(
        "segmentation_models_pytorch.encoders.hf_hub_download",
        lambda *_, **__: str(folder / "smp.safetensors"),
    )
    monkeypatch.setattr(
        "timm.models._builder.load_state_dict_from_hf", lambda *_, **__: dict(tensors)
    )


def test_the_published_bands_weights_are_smps_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _serve(monkeypatch, tmp_path, timm.create_model("resnet18").state_dict())
    spec = small_spec("unet", encoder="resnet18", encoder_weights="imagenet", band_names=FIVE)
    torch.manual_seed(3)
    ours = build_network(spec).state_dict()
    torch.manual_seed(3)
    theirs = smp.Unet(
        "resnet18", encoder_weights="imagenet", in_channels=5, classes=13,
        decoder_channels=(64, 48, 32, 24, 16),
    ).state_dict()  # fmt: skip
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("prefix", ["", "encoder."])
def test_an_encoder_of_timms_taken_from_a_run_loads(tmp_path: Path, prefix: str) -> None:
    encoder = "tu-resnet18"
    tensors = get_encoder(encoder, weights=None).state_dict()
    torch.save({prefix + name: tensor for name, tensor in tensors.items()}, tmp_path / "a.pth")
    spec = small_spec("unet", encoder=encoder, encoder_weights=str(tmp_path / "a.pth"))
    ours = build_network(spec).state_dict()
    assert torch.equal(ours["encoder.model.bn1.weight"], tensors["model.bn1.weight"])
    assert torch.equal(
        ours["encoder.model.layer2.0.conv1.weight"], tensors["model.layer2.0.conv1.weight"]
    )


def test_weights_of_another_depth_of_timms_are_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet34").state_dict(), tmp_path / "a.pth")
    spec = small_spec("unet", encoder="tu-resnet18", encoder_weights=str(tmp_path / "a.pth"))
    with pytest.raises(ModelError, match=r"not those of tu-resnet18.*left over: layer1\.2\.conv1"):
        build_network(spec)


def test_weights_of_another_encoder_are_refused_with_a_list(tmp_path: Path) -> None:
    torch.save(get_encoder("resnet34", weights=None).state_dict(), tmp_path / "a.pth")
    spec = small_spec("unet", encoder="resnet18", encoder_weights=str(tmp_path / "a.pth"))
    with pytest.raises(ModelError, match=r"not those of resnet18.*left over: layer1\.2\.conv1"):
        build_network(spec)


def test_imagenet_weights_come_from_the_hubs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = encoders["resnet18"]["pretrained_settings"]["imagenet"]
    repository = tmp_path / f"models--{place['repo_id'].replace('/', '--')}"
    snapshot = repository / "snapshots" / place["revision"]
    snapshot.mkdir(parents=True)
    tensors = get_encoder("resnet18", weights=None).state_dict()
    save_file(tensors, snapshot / "model.safetensors")
    (snapshot / "config.json").write_text("{}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    model = build_network(small_spec("unet", encoder="resnet18", encoder_weights="imagenet"))
    expected = _adapted(tensors["conv1.weight"], 5)
    torch.testing.assert_close(model.state_dict()["encoder.conv1.weight"], expected)


@pytest.mark.parametrize("encoder", ["resnet18", "timm-mobilenetv3_small_minimal_100"])
def test_imagenet_weights_that_cannot_be_had_are_refused_with_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: str
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    spec = small_spec("unet", encoder=encoder, encoder_weights="imagenet")
    with pytest.raises(
        ModelError, match=r"model\.encoder_weights=null.*run once online"
    ) as refusal:
        build_network(spec)
    assert len(str(refusal.value).splitlines()) == 1


def test_weights_that_do_not_exist_are_not_called_unreachable() -> None:
    spec = small_spec("unet", encoder="dpn68b", encoder_weights="imagenet")
    with pytest.raises(ModelError, match=r"cannot be had .*options are"):
        build_network(spec)


def test_nothing_is_fetched_where_other_weights_will_follow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fetch(*_: object, **__: object) -> None:
        raise AssertionError("asked the hub")

    monkeypatch.setattr("segmentation_models_pytorch.encoders.hf_hub_download", fetch)
    spec = small_spec("unet", encoder="resnet18", encoder_weights="imagenet")
    build_network(spec, pretrained=False)


@pytest.mark.parametrize(
    ("encoder", "weights", "message"),
    [
        ("resnet43", None, "nearest: .*resnet34"),
        ("tu-no_such_network", None, "tu-no_such_network"),
        ("resnet18", "imagnet", "model.encoder_weights=imagnet"),
    ],
)
def test_unknown_encoders_and_weights_are_refused(
    encoder: str, weights: str | None, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        build_network(small_spec("unet", encoder=encoder, encoder_weights=weights))


@pytest.mark.parametrize("encoder", ["tu-swinv2_cr_tiny_224", "tu-maxvit_pico_rw_256"])
def test_an_encoder_for_one_size_of_image_is_refused_for_another(encoder: str) -> None:
    with pytest.raises(ModelError, match=rf"{encoder} does not take patches of 64 px"):
        build_network(small_spec("unet", encoder=encoder))


@pytest.mark.parametrize(
    ("encoder", "size"), [("tu-swinv2_cr_tiny_224", 224), ("tu-convnext_atto", 64)]
)
def test_an_encoder_is_tried_without_a_trace(encoder: str, size: int) -> None:
    model = build(small_spec("unet", encoder=encoder, patch_size=size))
    assert not any(value.is_meta for value in model.state_dict().values())
    with torch.no_grad():
        assert model(torch.rand(1, 5, size, size))["aerial"].isfinite().all()
