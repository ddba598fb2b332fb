"""What a sweep checks before its first job: every mistake that needs torch, and no weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flair2_exp.errors import FlairError
from flair2_exp.lifecycle import assembly
from flair2_exp.models.registry import NetworkSpec, SegmentationModel
from flair2_exp.training.feasible import require_feasible
from tests.configs import compose_config

PRETRAINED = "model.encoder_weights=imagenet"  # which nobody may ask the hub for


def _require(*overrides: str, patch_size: int = 512) -> None:
    config = compose_config(PRETRAINED, *overrides)
    spec = assembly.network_spec(config, patch_size)
    require_feasible(spec, config.optimizer, config.scheduler, config.loss, 10)


@pytest.mark.parametrize(
    "overrides",
    [
        ("model=unet",),
        ("model=utae",),
        ("model=utt", "metadata=on", "optimizer=adamw", "loss=focal", "scheduler=plateau"),
        ("model=unet", "model.encoder=mit_b0"),  # looks at values while it is built
        ("model=unet", "optimizer=adamw", "+optimizer.options.fused=true"),
    ],
    ids=str,
)
def test_what_can_be_trained_is_let_through_without_a_trace(
    overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(*_: object, **__: object) -> None:
        raise AssertionError("asked the hub")

    monkeypatch.setattr("segmentation_models_pytorch.encoders.hf_hub_download", fetch)
    before = torch.get_rng_state()
    _require(*overrides)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.encoder=resnet35",), r"model\.encoder=resnet35 does not exist .nearest: .*34"),
        (("model.encoder=tu-swinv2_cr_tiny_224",), "does not take patches of 512 px"),
        (("model.encoder=tu-nothing",), r"model\.encoder=tu-nothing cannot be built"),
        (("+model.options.width=3",), r"model\.options\.width: Unet.* has no such option"),
        (
            ("model._target_=flair2_exp.models.aerial.Nope",),
            r"model\._target_=.*Nope: .* has no Nope",
        ),
        (("optimizer._target_=torch.optim.Nope",), r"optimizer\._target_=.*Nope: .* has no Nope"),
        (("+optimizer.options.momentum=-1",), "Invalid momentum"),
        (
            ("optimizer=adamw", "+optimizer.options.betas=[0.9]"),
            r"optimizer\.options\.betas\.1",
        ),
        (("optimizer=adamw", "+optimizer.options.betas=[]"), r"optimizer\.options\.betas"),
        (("optimizer=adamw", "+optimizer.options.eps=small"), r"optimizer\.options\.eps=small: "),
        (
            (
                "optimizer=sgd",
                "+optimizer.options.momentum=0.9",
                "+optimizer.options.dampening=much",
            ),
            r"optimizer\.options\.dampening=much: ",
        ),
        (("scheduler._target_=torch.optim.SGD",), r"scheduler\._target_="),
        (("scheduler._target_=torch.optim.lr_scheduler.StepLR",), r"options\.step_size has no val"),
        (("loss._target_=torch.nn.MSELoss",), "the loss MSELoss"),
    ],
    ids=str,
)
def test_what_cannot_be_trained_is_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(FlairError, match=message) as refusal:
        _require("model=unet", "data=aerial_only", *overrides)
    assert len(str(refusal.value).splitlines()) <= 2


def test_patches_that_the_encoder_cannot_halve_are_refused() -> None:
    with pytest.raises(FlairError, match=r"100 px do not suit model\.decoder=unet"):
        _require("model=unet", patch_size=100)


class Large(SegmentationModel):
    """Too large for any machine, were it built for real."""

    main_head = "aerial"

    def __init__(self, spec: NetworkSpec, *, pretrained: bool = True) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(10**6, 10**8))

    def forward(self, image: Tensor) -> dict[str, Any]:
        raise NotImplementedError


def test_no_memory_is_taken_for_the_weights() -> None:
    _require(f"model._target_={__name__}.Large", "model.reads=[aerial]", "model.nodes=[]")
