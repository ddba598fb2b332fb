from __future__ import annotations

import pytest
import torch

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
        ("cpu", 0, "32-true", "from 1 up"),
    ],
)
def test_what_a_machine_without_gpu_lacks_is_refused(
    accelerator: str, devices: int, precision: str, message: str
) -> None:
    with pytest.raises(DeviceError, match=message):
        require_device(accelerator, devices, precision)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
def test_the_processor_takes_its_own_precisions(precision: str) -> None:
    require_device("auto", 1, precision)
    require_device("cpu", 2, precision)


@pytest.mark.usefixtures("two_old_gpus")
def test_too_many_devices_and_missing_bfloat16_are_refused() -> None:
    for accelerator in ("auto", "gpu", "cuda"):
        require_device(accelerator, 2, "16-mixed")
        require_device(accelerator, -1, "32-true")
        with pytest.raises(DeviceError, match=r"this machine has 2"):
            require_device(accelerator, 3, "32-true")
    require_device("cpu", 3, "32-true")
    with pytest.raises(DeviceError, match=r"an old card has no bfloat16"):
        require_device("gpu", 1, "bf16-mixed")


def test_a_strategy_that_lightning_does_not_have_is_refused() -> None:
    for strategy in ("auto", "ddp", "ddp_find_unused_parameters_true"):
        require_strategy(strategy)
    with pytest.raises(DeviceError, match=r"strategy=dpp: no such strategy; did you mean ddp"):
        require_strategy("dpp")
