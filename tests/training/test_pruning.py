from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from flair2_exp.training.pruning import Pruning, UnknownObjectiveError


class Trial:
    """Stops at the first score below a bar."""

    def __init__(self, bar: float) -> None:
        self.bar = bar
        self.reports: list[tuple[float, int]] = []

    def report(self, value: float, step: int) -> bool:
        self.reports.append((value, step))
        return value < self.bar

    def prune(self, step: int) -> None:
        raise AssertionError


def trainer_at(epoch: int, score: float, fn: TrainerFn = TrainerFn.FITTING, **more: Any) -> Any:
    values = {
        "state": SimpleNamespace(fn=fn),
        "sanity_checking": False,
        "callback_metrics": {"val/miou": torch.tensor(score), "val/loss": torch.tensor(1.0)},
        "current_epoch": epoch,
        "is_global_zero": True,
        "strategy": SimpleNamespace(broadcast=lambda value: value),
        "should_stop": False,
    }
    return SimpleNamespace(**{**values, **more})


def validate(callback: Pruning, trainer: Any) -> bool:
    callback.on_validation_end(trainer, None)  # type: ignore[arg-type]
    return bool(trainer.should_stop)


def test_scores_are_reported_as_they_are_and_only_the_trial_stops_the_training() -> None:
    trial = Trial(bar=0.3)
    pruning = Pruning(trial, "val/miou")
    # Better and better, where more is better: the sign must not have been turned.
    assert not validate(pruning, trainer_at(0, 0.5))
    assert not validate(pruning, trainer_at(1, 0.75))
    assert pruning.stopped_epoch is None
    assert validate(pruning, trainer_at(2, 0.25))
    assert pruning.stopped_epoch == 3
    assert trial.reports == [(0.5, 1), (0.75, 2), (0.25, 3)]


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_what_is_no_number_is_not_reported(score: float) -> None:
    trial = Trial(bar=2.0)
    assert not validate(Pruning(trial, "val/miou"), trainer_at(0, score))
    assert trial.reports == []


def test_a_validation_outside_training_is_not_reported() -> None:
    trial = Trial(bar=2.0)
    pruning = Pruning(trial, "val/miou")
    assert not validate(pruning, trainer_at(0, 0.5, TrainerFn.VALIDATING))
    assert not validate(pruning, trainer_at(0, 0.5, sanity_checking=True))
    assert trial.reports == []


def test_another_process_stops_when_the_first_one_does_and_reports_nothing() -> None:
    told = SimpleNamespace(broadcast=lambda answer: (True, None))
    trainer = trainer_at(0, 0.5, is_global_zero=False, strategy=told)
    assert validate(Pruning(None, "val/miou"), trainer)


class ClosedTrial(Trial):
    """Does not take the report."""

    def report(self, value: float, step: int) -> bool:
        raise RuntimeError("closed by another worker")


def test_a_reporter_that_fails_ends_the_training_as_an_error_in_every_process() -> None:
    sent: list[Any] = []
    first = SimpleNamespace(broadcast=lambda answer: sent.append(answer) or answer)
    pruning = Pruning(ClosedTrial(0.0), "val/miou")
    with pytest.raises(RuntimeError, match="closed by another"):
        validate(pruning, trainer_at(0, 0.5, strategy=first))
    assert pruning.stopped_epoch is None
    other = SimpleNamespace(broadcast=lambda _: sent[0])
    with pytest.raises(RuntimeError, match="closed by another"):
        validate(
            Pruning(None, "val/miou"), trainer_at(0, 0.5, is_global_zero=False, strategy=other)
        )


def test_a_metric_that_validation_does_not_measure_is_refused_in_the_first_epoch() -> None:
    with pytest.raises(UnknownObjectiveError, match=r"objective=val/mio.*val/loss, val/miou\."):
        validate(Pruning(Trial(0.0), "val/mio"), trainer_at(0, 0.5))
