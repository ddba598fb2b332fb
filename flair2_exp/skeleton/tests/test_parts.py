"""What must hold of network and loss before hours are spent on them."""

import torch
from my_study.losses import MyLoss
from my_study.nets import MyNet

from flair2_exp.models.check import check_network, require_sound


def test_the_network_keeps_the_contract() -> None:
    require_sound(check_network(MyNet, options={"width": 16}, patch_size=64, compare=False))


def test_pixels_of_classes_that_weigh_nothing_cost_nothing() -> None:
    loss = MyLoss([1.0, 1.0, 0.0])
    logits = torch.randn(2, 3, 8, 8)
    target = torch.randint(0, 2, (2, 8, 8))
    other = target.clone()
    target[:, :4], other[:, :4] = 2, 2
    changed = logits.clone()
    changed[:, :, :3] += torch.randn(2, 3, 3, 8)
    assert torch.allclose(loss(logits, target), loss(changed, other))
    assert loss(logits, torch.full_like(target, 2)) == 0


def test_a_perfect_prediction_costs_next_to_nothing() -> None:
    target = torch.randint(0, 3, (2, 8, 8))
    logits = 20.0 * torch.nn.functional.one_hot(target, 3).movedim(-1, 1)
    assert MyLoss([1.0, 1.0, 1.0])(logits, target) < 1e-3
