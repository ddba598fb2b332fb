from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional

from flair2_exp.nomenclature import CLASSES_13
from flair2_exp.training.losses import PixelLoss, class_weights

NAMES = [each.name for each in CLASSES_13]


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
    weights = class_weights(NAMES, {"other": 0.0, "water": 3.0})
    expected = functional.cross_entropy(
        *batch, torch.tensor(weights), ignore_index=12, label_smoothing=smoothing
    )
    ours = PixelLoss(weights, label_smoothing=smoothing)(*batch)
    torch.testing.assert_close(ours, expected)


def test_focal_loss_agrees_with_a_plain_loop(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, target = batch
    weights = class_weights(NAMES, {"other": 0.0, "building": 2.0})
    total = weight_sum = 0.0
    for b in range(2):
        for y in range(5):
            for x in range(7):
                truth = int(target[b, y, x])
                p = float(logits[b, :, y, x].softmax(0)[truth])
                total += weights[truth] * (1 - p) ** 2 * -math.log(p)
                weight_sum += weights[truth]
    ours = PixelLoss(weights, gamma=2.0)(logits, target)
    assert float(ours) == pytest.approx(total / weight_sum, rel=1e-5)


def test_dice_is_added_over_the_classes_that_weigh_anything() -> None:
    target = torch.randint(0, 12, (2, 8, 8), generator=torch.Generator().manual_seed(1))
    perfect = 30.0 * functional.one_hot(target, 13).movedim(-1, 1).float()
    weights = class_weights(NAMES, {"other": 0.0})
    assert float(PixelLoss(weights, dice=True)(perfect, target)) == pytest.approx(0.0, abs=1e-3)
    wrong = 30.0 * functional.one_hot((target + 1) % 12, 13).movedim(-1, 1).float()
    with_dice, without = (PixelLoss(weights, dice=d)(wrong, target) for d in (True, False))
    assert float(with_dice - without) == pytest.approx(1.0, abs=1e-3)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"label_smoothing": 0.1},
    {"gamma": 2.0},
    {"gamma": 0.5, "label_smoothing": 0.1},
    {"dice": True},
    {"dice": True, "label_smoothing": 0.1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_batch_wholly_of_other_costs_nothing_and_has_no_gradient(options: dict[str, Any]) -> None:
    logits = torch.randn(1, 13, 4, 4, requires_grad=True)
    loss = PixelLoss(class_weights(NAMES, {"other": 0.0}), **options)(
        logits, torch.full((1, 4, 4), 12)
    )
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
    loss = PixelLoss(class_weights(NAMES, {"other": 0.0}, without=["plowed land"]), **options)
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
    loss = PixelLoss(class_weights(NAMES, {}), gamma=gamma)(logits, torch.full((1, 1, 2), 3))
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert float(logits.grad[0, 3, 0, 1]) < 0


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_classes_absent_from_a_batch_leave_the_loss_finite(options: dict[str, Any]) -> None:
    logits = (100 * torch.randn(2, 13, 4, 4)).requires_grad_()
    target = torch.full((2, 4, 4), 5)
    loss = PixelLoss(class_weights(NAMES, {"other": 0.0}), **options)(logits, target)
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
    weights = class_weights(NAMES, {"other": 0.0, "water": 0.3})
    expected = float(PixelLoss(weights, **options)(logits, target))
    loss = PixelLoss(weights, **options).to(kind)(logits.to(kind), target)
    assert loss.dtype == torch.promote_types(kind, torch.float32)
    assert float(loss) == pytest.approx(expected, rel=within)


def test_the_satellite_head_of_the_baseline_ignores_plowed_land() -> None:
    weights = class_weights(NAMES, {"other": 0.0}, without=["plowed land"])
    assert weights == [1.0] * 11 + [0.0, 0.0]
