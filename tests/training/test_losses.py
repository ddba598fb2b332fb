from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch.nn import functional

from flair2_exp.config.training import LossConfig
from flair2_exp.errors import ConfigError
from flair2_exp.nomenclature import CLASSES_13
from flair2_exp.training.losses import build_loss, require_loss
from tests.configs import compose_config

NAMES = [each.name for each in CLASSES_13]


@functools.cache
def _config(name: str) -> LossConfig:
    return compose_config(f"loss={name}").loss


def loss_of(
    name: str = "cross_entropy", weights: Mapping[str, float] | None = None, **options: Any
) -> torch.nn.Module:
    """A loss of conf/loss, "other" left out."""
    class_weights = {"other": 0.0, **(weights or {})}
    config = dataclasses.replace(_config(name), class_weights=class_weights, **options)
    return build_loss(config, NAMES, "aerial")


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 13, 5, 7, generator=generator)
    target = torch.randint(0, 13, (2, 5, 7), generator=generator)
    return logits, target


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_pytorchs_weighted_mean(
    batch: tuple[torch.Tensor, torch.Tensor], smoothing: float
) -> None:
    weights = torch.tensor([{"other": 0.0, "water": 3.0}.get(name, 1.0) for name in NAMES])
    expected = functional.cross_entropy(*batch, weights, ignore_index=12, label_smoothing=smoothing)
    ours = loss_of(weights={"water": 3.0}, label_smoothing=smoothing)(*batch)
    torch.testing.assert_close(ours, expected)


def test_focal_loss_agrees_with_a_plain_loop(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, target = batch
    weights = [{"other": 0.0, "building": 2.0}.get(name, 1.0) for name in NAMES]
    total = weight_sum = 0.0
    for b in range(2):
        for y in range(5):
            for x in range(7):
                truth = int(target[b, y, x])
                p = float(logits[b, :, y, x].softmax(0)[truth])
                total += weights[truth] * (1 - p) ** 2 * -math.log(p)
                weight_sum += weights[truth]
    ours = loss_of("focal", {"building": 2.0}, gamma=2.0)(logits, target)
    assert float(ours) == pytest.approx(total / weight_sum, rel=1e-5)


def test_dice_is_added_over_the_classes_that_weigh_anything() -> None:
    target = torch.randint(0, 12, (2, 8, 8), generator=torch.Generator().manual_seed(1))
    perfect = 30.0 * functional.one_hot(target, 13).movedim(-1, 1).float()
    assert float(loss_of("dice_cross_entropy")(perfect, target)) == pytest.approx(0.0, abs=1e-3)
    wrong = 30.0 * functional.one_hot((target + 1) % 12, 13).movedim(-1, 1).float()
    with_dice, without = (
        loss_of(name)(wrong, target) for name in ("dice_cross_entropy", "cross_entropy")
    )
    assert float(with_dice - without) == pytest.approx(1.0, abs=1e-3)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"label_smoothing": 0.1},
    {"name": "focal", "gamma": 2.0},
    {"name": "focal", "gamma": 0.5, "label_smoothing": 0.1},
    {"name": "dice_cross_entropy"},
    {"name": "dice_cross_entropy", "label_smoothing": 0.1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_batch_wholly_of_other_costs_nothing_and_has_no_gradient(options: dict[str, Any]) -> None:
    logits = torch.randn(1, 13, 4, 4, requires_grad=True)
    loss = loss_of(**options)(logits, torch.full((1, 4, 4), 12))
    loss.backward()
    assert float(loss) == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_pixels_of_classes_that_weigh_nothing_are_left_out_of_every_term(
    batch: tuple[torch.Tensor, torch.Tensor], options: dict[str, Any]
) -> None:
    logits, target = batch
    left_out = (target >= 11)[:, None]  # "other", and plowed land in the baseline's satellite head
    loss = loss_of(weights={"plowed land": 0.0}, **options)
    others = torch.where(left_out, torch.randn_like(logits), logits).requires_grad_()
    cost = loss(others, target)
    torch.testing.assert_close(cost, loss(logits, target))
    cost.backward()
    assert others.grad is not None
    assert not (others.grad * left_out).any()
    assert others.grad.any()


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_a_pixel_beyond_doubt_has_a_finite_focal_gradient(gamma: float) -> None:
    logits = torch.zeros(1, 13, 1, 2)
    logits[0, 3, 0, 0] = 200.0  # its probability is 1 in float32
    logits.requires_grad_()
    loss = loss_of("focal", gamma=gamma)(logits, torch.full((1, 1, 2), 3))
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert float(logits.grad[0, 3, 0, 1]) < 0


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_classes_absent_from_a_batch_leave_the_loss_finite(options: dict[str, Any]) -> None:
    logits = (100 * torch.randn(2, 13, 4, 4)).requires_grad_()
    target = torch.full((2, 4, 4), 5)
    loss = loss_of(**options)(logits, target)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(
    ("kind", "within"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3), (torch.float64, 1e-5)]
)
def test_a_run_wholly_in_another_precision_costs_what_float32_does(
    batch: tuple[torch.Tensor, torch.Tensor],
    options: dict[str, Any],
    kind: torch.dtype,
    within: float,
) -> None:
    logits, target = batch
    weights = {"water": 0.3}
    expected = float(loss_of(weights=weights, **options)(logits, target))
    loss = loss_of(weights=weights, **options).to(kind)(logits.to(kind), target)
    assert loss.dtype == torch.promote_types(kind, torch.float32)
    assert float(loss) == pytest.approx(expected, rel=within)


def test_the_satellite_head_of_the_baseline_ignores_plowed_land() -> None:
    config = dataclasses.replace(_config("cross_entropy"), satellite_class_weights="reference")
    for head, plowed in (("aerial", 1.0), ("satellite", 0.0)):
        weights = build_loss(config, NAMES, head).weights
        assert weights.tolist() == [1.0] * 11 + [plowed, 0.0]


def _of(target: str, **options: Any) -> torch.nn.Module:
    """Any loss, "other" left out."""
    config = dataclasses.replace(_config("cross_entropy"), _target_=target, options=options)
    return build_loss(config, NAMES, "aerial")


def test_a_loss_of_another_library_gets_its_options_and_the_class_that_does_not_count(
    batch: tuple[torch.Tensor, torch.Tensor],
) -> None:
    from segmentation_models_pytorch.losses import LovaszLoss

    ours = _of("segmentation_models_pytorch.losses.LovaszLoss", mode="multiclass")
    require_loss(ours, 13)
    torch.testing.assert_close(ours(*batch), LovaszLoss("multiclass", ignore_index=12)(*batch))
    counted = _of("torch.nn.CrossEntropyLoss")(*batch)
    torch.testing.assert_close(counted, functional.cross_entropy(*batch, ignore_index=12))
    everything = _of("torch.nn.CrossEntropyLoss", ignore_index=-100)(*batch)
    torch.testing.assert_close(everything, functional.cross_entropy(*batch))


class Own(torch.nn.Module):
    """Takes all that a loss is given, and an option."""

    def __init__(
        self, weights: list[float], names: list[str], options: LossConfig, head: str, scale: float
    ) -> None:
        super().__init__()
        self.given = (weights, names, options, head, scale)

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return logits.mean()


def test_a_loss_of_ones_own_gets_what_it_names() -> None:
    loss = _of(f"{__name__}.Own", scale=2)
    weights = [1.0] * 12 + [0.0]
    assert isinstance(loss, Own)
    assert (loss.given[:2], loss.given[3:]) == ((weights, NAMES), ("aerial", 2.0))


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("flair2_exp.training.losses.Foc", {}, r"loss\._target_=\S+Foc: .*\n.*Module\."),
        ("os.system", {}, "not such a class"),
        (f"{__name__}.Own", {"scal": 1}, r"loss\.options\.scal: Own .*did you mean scale\?"),
        (f"{__name__}.Own", {"scale": "much"}, r"loss\.options\.scale=much: .*number"),
        (f"{__name__}.Own", {}, r"loss\.options\.scale has no value"),
    ],
)
def test_what_is_not_a_loss_or_not_its_option_is_refused(
    target: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        _of(target, **options)


@pytest.mark.parametrize("target", ["torch.nn.MSELoss", "torch.nn.Identity", "torch.nn.Softmax2d"])
def test_a_module_that_is_not_a_loss_is_refused_before_it_is_trained_with(target: str) -> None:
    with pytest.raises(ConfigError, match=r"the loss .*\nExpected a scalar of logits"):
        require_loss(_of(target), 13)
