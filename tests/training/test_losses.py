from __future__ import annotations

import math

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
    expected = functional.cross_entropy(*batch, torch.tensor(weights), label_smoothing=smoothing)
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


def test_a_batch_wholly_of_other_costs_nothing_and_has_finite_gradients() -> None:
    logits = torch.randn(1, 13, 4, 4, requires_grad=True)
    loss = PixelLoss(class_weights(NAMES, {"other": 0.0}))(logits, torch.full((1, 4, 4), 12))
    loss.backward()
    assert float(loss) == 0.0
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())


def test_the_satellite_head_of_the_baseline_ignores_plowed_land() -> None:
    weights = class_weights(NAMES, {"other": 0.0}, without=["plowed land"])
    assert weights == [1.0] * 11 + [0.0, 0.0]
