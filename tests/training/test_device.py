from __future__ import annotations

from typing import Any

import pytest
import torch

from flair2_exp.config.training import TrainerConfig
from flair2_exp.errors import DeviceError
from flair2_exp.training.device import require_device, require_strategy


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def two_old_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "an old card")


def _require(accelerator: Any, devices: int, precision: Any) -> None:
    require_device(TrainerConfig(accelerator=accelerator, devices=devices, precision=precision))


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("accelerator", "devices", "precision", "message"),
    [
        ("gpu", 1, "32-true", "no CUDA device.*trainer=cpu"),
        ("cuda", -1, "32-true", "no CUDA device"),
        ("mps", 1, "32-true", "no Apple GPU"),
        ("cpu", 1, "16-mixed", "needs a GPU"),
        ("auto", 1, "16-mixed", "needs a GPU"),
        ("cpu", -1, "32-true", "how many processes"),
        ("auto", -1, "32-true", "how many processes"),
    ],
)
def test_what_a_machine_without_gpu_lacks_is_refused(
    accelerator: str, devices: int, precision: str, message: str
) -> None:
    with pytest.raises(DeviceError, match=message):
        _require(accelerator, devices, precision)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
def test_the_processor_takes_its_own_precisions(precision: str) -> None:
    _require("auto", 1, precision)
    _require("cpu", 2, precision)


@pytest.mark.usefixtures("two_old_gpus")
def test_too_many_devices_and_missing_bfloat16_are_refused() -> None:
    for accelerator in ("auto", "gpu", "cuda"):
        _require(accelerator, 2, "16-mixed")
        _require(accelerator, -1, "32-true")
        with pytest.raises(DeviceError, match=r"this machine has 2"):
            _require(accelerator, 3, "32-true")
    _require("cpu", 3, "32-true")
    with pytest.raises(DeviceError, match=r"an old card has no bfloat16"):
        _require("gpu", 1, "bf16-mixed")


def test_a_strategy_that_lightning_does_not_have_is_refused() -> None:
    for strategy in ("auto", "ddp", "ddp_find_unused_parameters_true"):
        require_strategy(strategy)
    with pytest.raises(DeviceError, match=r"strategy=dpp: no such strategy; did you mean ddp"):
        require_strategy("dpp")
