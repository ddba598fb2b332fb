from __future__ import annotations

import pytest
import segmentation_models_pytorch as smp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from flair2_exp.models.decoder import convolve_doubled
from flair2_exp.models.registry import SegmentationModel
from tests.models.helpers import build, small_spec


@given(size=st.tuples(st.integers(1, 5), st.integers(1, 5)), channels=st.integers(1, 3))
@settings(max_examples=25)
def test_folded_kernels_convolve_the_resized_map(size: tuple[int, int], channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, channels, *size, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, channels, 3, 3, generator=generator, dtype=torch.float64)
    doubled = functional.interpolate(x, scale_factor=2)
    expected = functional.conv2d(doubled, weight, padding=1)
    torch.testing.assert_close(convolve_doubled(x, weight), expected)


def test_the_order_in_memory_is_kept() -> None:
    x = torch.rand(2, 8, 6, 6).to(memory_format=torch.channels_last)
    weight = torch.rand(4, 8, 3, 3)
    assert convolve_doubled(x, weight).is_contiguous(memory_format=torch.channels_last)
    assert convolve_doubled(x.contiguous(), weight).is_contiguous()


def _smp(encoder: str, model: SegmentationModel) -> torch.nn.Module:
    """smp's own U-Net with a model's weights."""
    network: torch.nn.Module = smp.Unet(
        encoder,
        encoder_weights=None,
        in_channels=5,
        classes=13,
        decoder_channels=(64, 48, 32, 24, 16),
    )
    network.load_state_dict(model.state_dict())
    return network


@pytest.mark.parametrize("encoder", ["resnet18", "mit_b0", "vgg11", "inceptionv4", "tu-resnet18"])
def test_the_u_net_is_smps(encoder: str) -> None:
    model = build(small_spec("unet", encoder=encoder))
    image = torch.rand(2, 5, 96, 96)
    with torch.no_grad():
        expected = _smp(encoder, model).eval()(image)
        torch.testing.assert_close(model(image)["aerial"], expected, rtol=1e-4, atol=1e-4)


def test_the_u_nets_gradients_and_statistics_are_smps() -> None:
    model = build(small_spec("unet", encoder="resnet18")).double().train()
    network = _smp("resnet18", model).double().train()
    image = torch.rand(2, 5, 64, 64, dtype=torch.float64)
    results: list[dict[str, Tensor]] = []
    for each, logits in ((model, model(image)["aerial"]), (network, network(image))):
        torch.autograd.backward(logits.square().mean())
        gradients = {n: p.grad for n, p in each.named_parameters() if p.grad is not None}
        results.append(gradients | dict(each.named_buffers()))
    torch.testing.assert_close(*results)
