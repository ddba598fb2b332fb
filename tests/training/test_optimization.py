from __future__ import annotations

import math

import pytest
import torch

from flair2_exp.errors import ConfigError
from flair2_exp.training.optimization import (
    OptimizerOptions,
    SchedulerOptions,
    build_optimizer,
    build_scheduler,
    learning_rate_course,
)


def _parameters() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(3))]


def test_any_optimizer_of_torch_is_found_by_its_path() -> None:
    options = OptimizerOptions("torch.optim.RMSprop", 0.1, 0.01, {"alpha": 0.9})
    optimizer = build_optimizer(_parameters(), options)
    assert isinstance(optimizer, torch.optim.RMSprop)
    assert optimizer.defaults["alpha"] == 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (OptimizerOptions("torch.optim.Adamm"), "cannot be imported"),
        (OptimizerOptions("os.system"), "expected a class derived from Optimizer"),
        (OptimizerOptions("builtins.eval"), "expected a class derived from Optimizer"),
        (OptimizerOptions("torch.optim.AdamW", options={"momentum": 0.9}), "AdamW takes lr, betas"),
        (OptimizerOptions("torch.optim.SGD", lr=-1.0), "Invalid learning rate"),
    ],
)
def test_what_is_no_optimizer_is_refused(options: OptimizerOptions, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_optimizer(_parameters(), options)


def test_the_cosine_falls_from_the_first_to_the_last_epoch() -> None:
    course = learning_rate_course(SchedulerOptions("cosine", final_factor=0.1), epochs=11)
    assert course(0) == 1.0
    assert course(5) == pytest.approx((1 + 0.1) / 2)
    assert course(10) == pytest.approx(0.1)
    expected = [0.1 + 0.9 * (1 + math.cos(math.pi * epoch / 10)) / 2 for epoch in range(11)]
    assert [course(epoch) for epoch in range(11)] == pytest.approx(expected)


def test_warm_up_rises_to_the_full_rate() -> None:
    course = learning_rate_course(SchedulerOptions("cosine", warmup_epochs=3), epochs=10)
    assert [course(epoch) for epoch in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_without_a_schedule_the_rate_stays() -> None:
    optimizer = build_optimizer(_parameters(), OptimizerOptions())
    scheduler = build_scheduler(optimizer, SchedulerOptions(), epochs=3)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 1e-3


def test_the_plateau_lowers_the_rate_when_the_validation_loss_stands_still() -> None:
    optimizer = build_optimizer(_parameters(), OptimizerOptions())
    options = SchedulerOptions("plateau", factor=0.5, patience=1)
    scheduler = build_scheduler(optimizer, options, epochs=9)
    for _ in range(4):
        scheduler.step(1.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(5e-4)


def test_a_warm_up_that_would_not_happen_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"warmup_epochs=2: scheduler=plateau has no warm-up"):
        SchedulerOptions("plateau", warmup_epochs=2)
