"""Every decoder with a convolutional and a transformer encoder, alone and in U-T&T."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

from flair2_exp.config.model import WITH_WIDTHS
from flair2_exp.errors import FlairError, ModelError
from flair2_exp.models.aerial import AerialSegmenter
from flair2_exp.models.decoders import DECODERS
from flair2_exp.models.registry import NetworkSpec, SegmentationModel, build_network
from flair2_exp.models.utt import UTT
from flair2_exp.models.weights import load_weights
from tests.models.helpers import batch, build, model_config, run, sample, small_spec

OTHERS = [name for name in DECODERS if name != "unet"]
VIT = "tu-vit_tiny_patch16_224"
NO_HALF = ("unetplusplus", "linknet")
"""Decoders that smp refuses for MiT encoders."""
LEVELS = {
    "unetplusplus": (1, 2, 3, 4, 5),
    "manet": (1, 2, 3, 4, 5),
    "linknet": (1, 2, 3, 4, 5),
    "fpn": (2, 3, 4, 5),
    "pspnet": (3,),
    "pan": (2, 3, 4, 5),
    "deeplabv3plus": (2, 5),
    "upernet": (2, 3, 4, 5),
    "segformer": (1, 2, 3, 4, 5),
    "dpt": (0, 1, 2, 3),
}
"""The levels that each reads of an encoder with a map at half resolution, as their papers say."""


def _spec(decoder: str, encoder: str = "resnet18", name: str = "", **changes: Any) -> NetworkSpec:
    """A small network of 128 px, the least that PAN takes; of the decoder's own file, or U-T&T."""
    model = model_config(decoder)
    sizes: dict[str, Any] = {"decoder": decoder, "depth": model.depth, "patch_size": 128}
    encoder = VIT if decoder == "dpt" else encoder
    return small_spec(name or decoder, encoder=encoder, **{**sizes, **changes})


def _gradients(model: SegmentationModel, samples: int) -> dict[str, bool]:
    """Train one step; return of each parameter that is trained whether it got a gradient."""
    model.train()
    logits = run(model, batch([2, 3][:samples], patch=128))
    assert {tuple(each.shape) for each in logits.values()} == {(samples, 13, 128, 128)}
    torch.autograd.backward([each.square().mean() for each in logits.values()])
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad.isfinite().all() for p in parameters.values() if p.grad is not None)
    return {n: p.grad is not None for n, p in parameters.items()}


@pytest.mark.parametrize("encoder", ["resnet18", "mit_b0"])
@pytest.mark.parametrize("decoder", OTHERS)
def test_a_decoder_trains_on_two_patches_and_on_one(decoder: str, encoder: str) -> None:
    if decoder == "dpt" and encoder == "mit_b0":
        pytest.skip("its encoder is the same vision transformer")
    if encoder == "mit_b0" and decoder in NO_HALF:
        encoder = "tu-mobilevitv2_050"
    model = build_network(_spec(decoder, encoder, metadata="rows"))
    assert isinstance(model, AerialSegmenter)
    assert all(_gradients(model, 2).values())
    model.zero_grad()
    assert all(_gradients(model, 1).values())
    frozen = {n.split(".")[0] for n, p in model.named_parameters() if not p.requires_grad}
    # PSPNet reads three levels; a ViT's last norm stands behind the maps that DPT reads.
    assert frozen == ({"encoder"} if decoder in ("pspnet", "dpt") else set())


@pytest.mark.parametrize("decoder", OTHERS)
def test_u_tt_fuses_the_levels_that_its_decoder_reads(decoder: str) -> None:
    model = build_network(_spec(decoder, name="utt", metadata="channels"))
    assert isinstance(model, UTT)
    assert model.unet.levels == LEVELS[decoder]
    assert all(_gradients(model, 2).values())
    built = [i for i, each in enumerate(model.fusion.cropped) if isinstance(each, nn.Conv2d)]
    assert built == sorted({0, *LEVELS[decoder]})
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    if decoder not in ("pspnet", "dpt"):  # whose encoders have idle parts
        assert len(frozen) == 16


@pytest.mark.parametrize("decoder", OTHERS)
def test_a_patchs_logits_depend_on_it_alone_and_survive_a_checkpoint(
    decoder: str, tmp_path: Path
) -> None:
    spec = _spec(decoder, name="utt", metadata="channels")
    first, second = build(spec, seed=1), build(spec, seed=2)
    inputs = batch([3, 2], patch=128)
    torch.save(first.state_dict(), tmp_path / "a.ckpt")
    load_weights(second, tmp_path / "a.ckpt")
    with torch.no_grad():
        together = run(first, inputs)
        alone = run(second, sample(inputs, 1))
    for head, logits in together.items():  # float32, of another order of sums where there are two
        torch.testing.assert_close(logits[1:], alone[head], rtol=1e-3, atol=3e-4)


@pytest.mark.parametrize("decoder", OTHERS)
def test_a_network_is_smps_of_that_name(decoder: str) -> None:
    spec = _spec(decoder)
    model = build(spec)
    widths = {"decoder_channels": spec.model.decoder_channels} if decoder in WITH_WIDTHS else {}
    size = {"dynamic_img_size": True, "num_classes": 0} if decoder == "dpt" else {}
    theirs = DECODERS[decoder](
        spec.model.encoder, encoder_weights=None, in_channels=5, classes=13, **widths, **size
    ).eval()
    theirs.load_state_dict(model.state_dict())
    image = torch.rand(1, 5, 128, 128)
    with torch.no_grad():
        torch.testing.assert_close(model(image)["aerial"], theirs(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("decoder", "depth"),
    [
        *((each, 3) for each in DECODERS if each != "dpt"),
        *((each, 4) for each in ("unet", "fpn", "pspnet", "pan")),
    ],
)
def test_shallower_encoders_give_logits_of_the_patch(decoder: str, depth: int) -> None:
    spec = _spec(decoder, depth=depth, decoder_channels=(32, 16, 8, 8)[:depth], metadata="rows")
    model = build(spec)
    inputs = batch([1], patch=128)
    with torch.no_grad():
        logits = model(image=inputs["image"], metadata=inputs["metadata"])["aerial"]
    assert logits.shape == (1, 13, 128, 128)
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert any(n.startswith("encoder.layer4") for n in frozen)


def test_options_of_the_u_net_decoder_are_smps() -> None:
    """The quicker way through the published decoder knows none of them."""
    options = {"decoder_attention_type": "scse", "decoder_interpolation": "bilinear"}
    model = build(_spec("unet", options=options))
    theirs = smp.Unet(
        "resnet18", encoder_weights=None, in_channels=5, classes=13,
        decoder_channels=(64, 48, 32, 24, 16), **options,
    ).eval()  # fmt: skip
    theirs.load_state_dict(model.state_dict())
    image = torch.rand(1, 5, 128, 128)
    with torch.no_grad():
        torch.testing.assert_close(model(image)["aerial"], theirs(image))


@pytest.mark.parametrize(
    ("decoder", "changes", "message"),
    [
        ("pan", {"patch_size": 64}, "does not take patches of 64 px with model.decoder=pan"),
        ("fpn", {"patch_size": 80}, "Patches of 80 px .*multiple of 32 px"),
        ("upernet", {"patch_size": 72, "depth": 4}, "Patches of 72 px .*multiple of 16 px"),
        ("pan", {"patch_size": 136}, "Patches of 136 px .*multiple of 16 px"),
        ("dpt", {"patch_size": 48}, "Patches of 48 px .*multiple of 32 px"),
        ("linknet", {"encoder": "mit_b0"}, "no map at half resolution"),
        ("unetplusplus", {"encoder": "mit_b0"}, "no map at half resolution"),
        ("fpn", {"encoder": "mit_b0", "depth": 4}, "only encoder_depth=5"),
        ("deeplabv3plus", {"encoder": "vgg11"}, "cannot be built .*dilated"),
        ("dpt", {}, "must start with 'tu-'"),
        ("dpt", {"encoder": "tu-swin_tiny_patch4_window7_224"}, "not a plain vision transformer"),
        ("fpn", {"options": {"decoder_dropuot": 0.1}}, r"no such option; did you mean .*dropout"),
        ("fpn", {"options": {"decoder_dropout": "much"}}, r"decoder_dropout=much: input should be"),
        ("fpn", {"options": {"classes": 3}}, r"is given its classes: omit"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused_in_two_lines(
    decoder: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(FlairError, match=message) as refusal:
        build_network(small_spec(decoder, **{"encoder": "resnet18", "patch_size": 128, **changes}))
    assert len(str(refusal.value).splitlines()) <= 2


def test_an_encoder_that_cannot_dilate_serves_with_its_own_stride() -> None:
    with pytest.raises(ModelError, match="dilated"):
        build_network(small_spec("pan", encoder="vgg11", patch_size=256))
    options = {"encoder_output_stride": 32}
    assert build(small_spec("pan", encoder="vgg11", patch_size=256, options=options))


@pytest.mark.parametrize("size", [64, 96])
def test_vision_transformers_take_patches_of_other_sizes(size: int) -> None:
    model = build(small_spec("dpt", encoder=VIT, patch_size=size))
    with torch.no_grad():
        assert model(torch.rand(1, 5, size, size))["aerial"].shape == (1, 13, size, size)
