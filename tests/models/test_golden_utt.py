"""The whole U-T&T against the published one: outputs and five steps of training."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor, nn
from torch.nn import functional

from flair2_exp.models.build import build_model
from flair2_exp.models.utt import UTT
from flair2_exp.models.weights import load_weights
from tests.golden_vectors import golden
from tests.models.helpers import golden_spec

EVALUATION = 1e-4  # tolerances of the golden README
AERIAL = 4e-4


@pytest.fixture(scope="module")
def arrays() -> NpzFile:
    return golden("utt_small")


@pytest.fixture(scope="module")
def inputs(arrays: NpzFile) -> dict[str, Tensor]:
    image = torch.from_numpy(arrays["in/patch_div4"])
    return {
        "image": image.repeat_interleave(4, 2).repeat_interleave(4, 3),
        "series": torch.from_numpy(arrays["in/s2"]),
        "days": torch.from_numpy(arrays["in/dates"]),
        "metadata": torch.from_numpy(arrays["in/metadata"]),
    }


@pytest.fixture
def model(arrays: NpzFile, tmp_path_factory: pytest.TempPathFactory) -> UTT:
    path = tmp_path_factory.mktemp("released") / "baseline.ckpt"
    weights = {
        f"model.{name.removeprefix('sd/')}": torch.from_numpy(arrays[name])
        for name in arrays.files
        if name.startswith("sd/")
    }
    torch.save({"state_dict": weights, "epoch": 3}, path)
    built = build_model(golden_spec(), pretrained=False)
    assert isinstance(built, UTT)
    load_weights(built, path)
    return built.eval()


@pytest.fixture(autouse=True)
def _both_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def _close(found: Tensor, arrays: NpzFile, name: str, tolerance: float) -> None:
    torch.testing.assert_close(found, torch.from_numpy(arrays[name]), rtol=0, atol=tolerance)


@torch.inference_mode()
def test_logits_are_the_published_ones(
    model: UTT, arrays: NpzFile, inputs: dict[str, Tensor]
) -> None:
    logits = model(**inputs)
    _close(logits["aerial"][..., ::8, ::8], arrays, "out/utt_logits_div8", AERIAL)
    _close(logits["satellite"][..., ::8, ::8], arrays, "out/utt_s2_logits_div8", EVALUATION)
    last_map = model.utae(inputs["series"], inputs["days"]).maps[-1]
    _close(last_map, arrays, "out/utae_last_map", EVALUATION)
    _close(model.utae.classify(last_map), arrays, "out/utae_logits", EVALUATION)


@torch.inference_mode()
def test_logits_without_metadata_are_the_published_ones(
    model: UTT, arrays: NpzFile, inputs: dict[str, Tensor]
) -> None:
    model.unet.metadata = None
    logits = model(**inputs)["aerial"]
    _close(logits[..., ::8, ::8], arrays, "out/utt_logits_nometadata_div8", AERIAL)


@torch.inference_mode()
def test_samples_one_by_one_are_the_published_ones(
    model: UTT, arrays: NpzFile, inputs: dict[str, Tensor]
) -> None:
    padding = (inputs["series"] == 0).flatten(2).all(2)
    alone = []
    for i, padded in enumerate(padding):
        one = {name: value[i : i + 1] for name, value in inputs.items()}
        cut = {name: one[name][:, ~padded] for name in ("series", "days")}
        alone.append(model(**(one | cut))["aerial"])
    _close(torch.cat(alone)[..., ::8, ::8], arrays, "out/utt_logits_one_by_one_div8", AERIAL)


def test_five_steps_of_training_lose_what_the_published_ones_lost(
    model: UTT, arrays: NpzFile, inputs: dict[str, Tensor]
) -> None:
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0
    label = torch.from_numpy(arrays["in/label_div16"]).long()
    label = label.repeat_interleave(16, 1).repeat_interleave(16, 2)
    weights = {"aerial": torch.ones(13), "satellite": torch.ones(13)}
    weights["aerial"][12] = weights["satellite"][12] = weights["satellite"][11] = 0
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(5):
        logits = model(**inputs)
        aerial, satellite = (
            functional.cross_entropy(logits[head], label, weight)
            for head, weight in weights.items()
        )
        total = aerial + satellite
        losses.append([aerial.item(), satellite.item(), total.item()])
        optimizer.zero_grad()
        torch.autograd.backward(total)
        optimizer.step()
    expected = torch.from_numpy(arrays["out/losses_aerial_s2_total"])
    found = torch.tensor(losses).to(expected.dtype)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)
