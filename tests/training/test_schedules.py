from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from flair2_exp.config.training import SchedulerConfig
from flair2_exp.errors import ConfigError
from flair2_exp.training.schedules import Schedule, build_schedule
from tests.configs import compose_config


def _schedule(name: str, epochs: int, **options: Any) -> tuple[torch.optim.SGD, Schedule]:
    """A schedule of conf/scheduler over an optimizer whose rate is 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=1.0)
    target = compose_config(f"scheduler={name}").scheduler._target_
    config = SchedulerConfig(name=name, _target_=target, **options)
    return optimizer, build_schedule(optimizer, config, epochs)


def _rates(name: str, epochs: int, **options: Any) -> list[float]:
    """The learning rate in each epoch."""
    optimizer, schedule = _schedule(name, epochs, **options)
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_the_cosine_falls_from_the_first_to_the_last_epoch() -> None:
    expected = [0.1 + 0.9 * (1 + math.cos(math.pi * epoch / 10)) / 2 for epoch in range(11)]
    rates = _rates("cosine", 11, final_factor=0.1)
    assert rates == pytest.approx(expected)
    assert (rates[0], rates[5], rates[10]) == pytest.approx((1.0, (1 + 0.1) / 2, 0.1))


@pytest.mark.parametrize("name", ["cosine", "none"])
def test_warm_up_rises_to_the_full_rate(name: str) -> None:
    rates = _rates(name, 10, warmup_epochs=3)
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_without_a_schedule_the_rate_stays() -> None:
    assert _rates("none", 3) == [1.0] * 3


def test_the_plateau_lowers_the_rate_when_the_validation_loss_stands_still() -> None:
    optimizer, schedule = _schedule("plateau", 9, factor=0.5, patience=1)
    assert isinstance(schedule, ReduceLROnPlateau)
    for _ in range(4):
        schedule.step(1.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["cosine", "none", "plateau"])
def test_a_schedules_state_is_plain_values(name: str) -> None:
    plain = (int, float, str, bool, type(None), list)
    state = _schedule(name, 9)[1].state_dict()
    assert all(isinstance(value, plain) for value in state.values()), state


@pytest.mark.parametrize("target", ["torch.optim.lr_scheduler.StepLR", "flair2_exp.training.none"])
def test_what_is_not_a_schedule_is_refused_in_two_lines(target: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(3))])
    with pytest.raises(ConfigError, match=rf"scheduler\._target_={target}: .*\n.*Schedule\."):
        build_schedule(optimizer, SchedulerConfig(_target_=target), 3)
