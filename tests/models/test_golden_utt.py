"""The whole U-T&T against the published one: outputs and steps of training.

It is built as a run builds it, from a composed config to the task: what agrees here is what trains.
`test_golden_run` tests it one sample a batch.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor

from flair2_exp.models.registry import NetworkSpec
from flair2_exp.models.utt import UTT
from flair2_exp.training.optimizers import build_optimizer
from flair2_exp.training.task import SegmentationTask
from tests.golden_vectors import golden
from tests.models.helpers import golden_inputs, golden_spec, golden_task, golden_weights

pytestmark = pytest.mark.usefixtures("both_cores")

EVALUATION = 1e-4  # tolerances of the golden README
AERIAL = 4e-4


@pytest.fixture(scope="module")
def arrays() -> NpzFile:
    return golden("utt_small")


@pytest.fixture(scope="module", params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request: pytest.FixtureRequest) -> str:
    """The processor and, where there is one, the graphics card, both in plain float32."""
    return str(request.param)


@pytest.fixture(autouse=True)
def _no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="module")
def batch(device: str) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in golden_inputs().items()}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return golden_weights(tmp_path_factory.mktemp("released"))


@pytest.fixture
def task(weights: Path, device: str) -> SegmentationTask:
    return golden_task(weights, "compat=reference").eval().to(device)


def _utt(task: SegmentationTask) -> UTT:
    assert isinstance(task.model, UTT)
    return task.model


def _close(output: Tensor, arrays: NpzFile, name: str, tolerance: float) -> None:
    torch.testing.assert_close(output.cpu(), torch.from_numpy(arrays[name]), rtol=0, atol=tolerance)


def test_the_reference_settings_are_those_of_the_golden_model(task: SegmentationTask) -> None:
    spec = NetworkSpec.of_plain(task.hparams["network"])
    assert spec.deciding() == golden_spec().deciding()
    assert task.keep_other


@torch.inference_mode()
def test_logits_are_the_published_ones(
    task: SegmentationTask, arrays: NpzFile, batch: dict[str, Tensor]
) -> None:
    logits = task(batch)
    _close(logits["aerial"][..., ::8, ::8], arrays, "out/utt_logits_div8", AERIAL)
    _close(logits["satellite"][..., ::8, ::8], arrays, "out/utt_s2_logits_div8", EVALUATION)
    utae = _utt(task).utae
    last_map = utae(batch["series"], batch["days"]).maps[-1]
    _close(last_map, arrays, "out/utae_last_map", EVALUATION)
    _close(utae.classify(last_map), arrays, "out/utae_logits", EVALUATION)


@torch.inference_mode()
def test_logits_without_metadata_are_the_published_ones(
    task: SegmentationTask, arrays: NpzFile, batch: dict[str, Tensor]
) -> None:
    _utt(task).unet.metadata = None
    logits = task(batch)["aerial"]
    _close(logits[..., ::8, ::8], arrays, "out/utt_logits_nometadata_div8", AERIAL)


@pytest.mark.thorough
def test_steps_of_training_lose_what_the_published_ones_lost(
    task: SegmentationTask, arrays: NpzFile, batch: dict[str, Tensor]
) -> None:
    task.train()
    optimizer = build_optimizer(task.parameters(), task.optimizer_options)
    steps_losses = []
    for _ in arrays["out/losses_aerial_s2_total"]:
        losses = task.loss(task(batch), batch)
        steps_losses.append(
            torch.stack([losses[head] for head in ("aerial", "satellite", "total")])
        )
        optimizer.zero_grad()
        torch.autograd.backward(losses["total"])
        optimizer.step()
    expected = torch.from_numpy(arrays["out/losses_aerial_s2_total"])
    steps = torch.stack(steps_losses).detach().cpu().to(expected.dtype)
    torch.testing.assert_close(steps[0], expected[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(steps, expected, rtol=1e-3, atol=0)


@torch.no_grad()
def test_the_first_loss_is_the_published_one_only_where_plowed_land_weighs_nothing(
    task: SegmentationTask, weights: Path, arrays: NpzFile, batch: dict[str, Tensor]
) -> None:
    assert (batch["satellite_label"] == 11).any()
    logits = task.train()(batch)
    corrected = golden_task(weights, "compat=reference", "loss.satellite_class_weights=as_aerial")
    corrected.to(task.device)
    losses = corrected.loss(logits, batch)
    aerial, satellite, _ = arrays["out/losses_aerial_s2_total"][0]
    assert losses["aerial"].item() == pytest.approx(aerial, rel=1e-6)
    assert losses["satellite"].item() != pytest.approx(satellite, rel=1e-3)
