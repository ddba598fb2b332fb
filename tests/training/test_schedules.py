from __future__ import annotations

import dataclasses
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from flair2_exp.config.training import SchedulerConfig
from flair2_exp.errors import ConfigError
from flair2_exp.training.schedules import build_schedule, require_kept
from tests.configs import compose_config
from tests.lifecycle.helpers import Killed
from tests.training.helpers import build_task, loader, trainer


def _schedule(name: str, epochs: int, **options: Any) -> tuple[torch.optim.SGD, LRScheduler]:
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


@pytest.mark.parametrize("target", ["torch.optim.SGD", "flair2_exp.training.none", "os.system"])
def test_what_is_not_a_schedule_is_refused_in_two_lines(target: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(3))])
    with pytest.raises(ConfigError, match=rf"scheduler\._target_={target}: .*\n.*LRScheduler\."):
        build_schedule(optimizer, SchedulerConfig(_target_=target), 3)


TORCHS: dict[str, dict[str, Any]] = {
    "OneCycleLR": {"max_lr": 0.5},
    "PolynomialLR": {"total_iters": 7, "power": 2.0},
    "StepLR": {"step_size": 3},
    "MultiStepLR": {"milestones": [2, 5]},
    "ExponentialLR": {"gamma": 0.9},
    "CosineAnnealingLR": {"T_max": 5},
    "CosineAnnealingWarmRestarts": {"T_0": 3},
    "LinearLR": {"total_iters": 4},
    "ConstantLR": {"total_iters": 4},
    "CyclicLR": {"base_lr": 0.1, "max_lr": 0.5, "step_size_up": 3},
}


@pytest.mark.parametrize("name", TORCHS)
def test_a_schedule_of_torch_gives_its_own_rates_and_goes_into_a_checkpoint(name: str) -> None:
    options = SchedulerConfig(
        _target_=f"torch.optim.lr_scheduler.{name}", options=TORCHS[name], interval="step"
    )
    ours, by_hand = (
        torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=1.0, momentum=0.9) for _ in range(2)
    )
    built = build_schedule(ours, options, epochs=4, steps_per_epoch=3)
    given = {"total_steps": 12} if name == "OneCycleLR" else {}
    kind = getattr(torch.optim.lr_scheduler, name)
    expected = kind(by_hand, **given, **TORCHS[name])
    for _ in range(12):
        assert ours.param_groups[0]["lr"] == by_hand.param_groups[0]["lr"]
        for optimizer, schedule in ((ours, built), (by_hand, expected)):
            optimizer.step()
            schedule.step()
    require_kept(built)


def test_a_cosine_by_steps_is_the_cosine_of_as_many_epochs() -> None:
    optimizers = [torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=1.0) for _ in range(2)]
    target = "flair2_exp.training.schedules.Cosine"
    by_step = SchedulerConfig(_target_=target, warmup_epochs=1, interval="step")
    by_epoch = SchedulerConfig(_target_=target, warmup_epochs=4)
    schedules = [build_schedule(optimizers[0], by_step, 5, 4),
                 build_schedule(optimizers[1], by_epoch, 20)]  # fmt: skip
    for _ in range(20):
        assert optimizers[0].param_groups[0]["lr"] == optimizers[1].param_groups[0]["lr"]
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()


class Unkept(LRScheduler):
    """Has a state that no checkpoint can hold."""

    def __init__(self, optimizer: torch.optim.Optimizer, rate: float = 1.0) -> None:
        self.curve = lambda step: rate
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        return [self.curve(self.last_epoch)]


def test_a_schedule_whose_state_cannot_be_kept_is_refused() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=1.0)
    built = build_schedule(optimizer, SchedulerConfig(_target_=f"{__name__}.Unkept"), 3)
    with pytest.raises(ConfigError, match=r"the state of Unkept .* cannot be kept in a checkpoint"):
        require_kept(built)


def test_a_schedule_that_would_make_one_rate_of_several_is_refused() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.ones(3))], "lr": rate} for rate in (0.1, 0.2)]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    options = SchedulerConfig(
        _target_="torch.optim.lr_scheduler.OneCycleLR", options={"max_lr": 0.1}, interval="step"
    )
    with pytest.raises(ConfigError, match="one rate for all parameters"):
        build_schedule(optimizer, options, 3, 4)
    by_group = dataclasses.replace(options, options={"max_lr": [0.1, 0.2]})
    build_schedule(optimizer, by_group, 3, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_sise": 3}, r"scheduler\.options\.step_sise: StepLR .*did you mean step_size\?"),
        ({"step_size": "often"}, r"scheduler\.options\.step_size=often: .*integer"),
        ({}, r"scheduler\.options\.step_size has no value"),
    ],
)
def test_options_that_a_schedule_does_not_take_are_refused(
    options: dict[str, Any], message: str
) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=1.0)
    config = SchedulerConfig(_target_="torch.optim.lr_scheduler.StepLR", options=options)
    with pytest.raises(ConfigError, match=message):
        build_schedule(optimizer, config, 3)


ONE_CYCLE = (
    "scheduler._target_=torch.optim.lr_scheduler.OneCycleLR", "+scheduler.options.max_lr=0.1",
    "scheduler.interval=step", "optimizer=sgd", "+optimizer.options.momentum=0.9",
)  # fmt: skip
POLYNOMIAL = (
    "scheduler._target_=torch.optim.lr_scheduler.PolynomialLR", "optimizer=sgd",
    "+scheduler.options.total_iters=3",
)  # fmt: skip
COURSES = {
    "one cycle": ONE_CYCLE,
    "polynomial": POLYNOMIAL,
    "cosine by steps": ("scheduler=cosine", "scheduler.interval=step", "scheduler.warmup_epochs=1"),
}


class Rates(Callback):
    """The rate of each step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])


class Stop(Callback):
    """Keeps a checkpoint after a step, and ends."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            raise Killed


@pytest.mark.parametrize("course", COURSES)
def test_rates_are_those_of_an_uninterrupted_training_wherever_it_resumes(
    course: str, tmp_path: Path
) -> None:
    words = ("model=unet", "data=aerial_only", *COURSES[course])
    settings: dict[str, Any] = {"max_epochs": 3, "accumulate_grad_batches": 2}

    def train(*callbacks: Callback, start: Path | None = None) -> list[float]:
        rates = Rates()
        kept = trainer(rates, *callbacks, **settings)
        with suppress(Killed):
            kept.fit(build_task(*words), loader(8), ckpt_path=start, weights_only=True)
        return rates.rates

    whole = train()
    assert len(whole) == 6  # of eight patches two in a batch and two batches in a step, three times
    for step in (1, 2):  # within an epoch, and at its end
        path = tmp_path / f"{step}.ckpt"
        before = train(Stop(step, path))
        assert before + train(start=path) == whole
