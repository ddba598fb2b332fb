"""Every precision that a run may ask for on a processor, through Lightning's own conversions."""

from __future__ import annotations

from typing import Any

import pytest

from flair2_exp.training.callbacks import StepSeeds
from tests.training.helpers import build_task, loader, trainer


def _loss(*overrides: str, **options: Any) -> float:
    """The loss of the second epoch's network, trained and tested in one precision."""
    task = build_task("metadata=on", *overrides)
    fit = trainer(StepSeeds(1), max_epochs=2, **options)
    fit.fit(task, loader(), loader())
    (scores,) = fit.test(task, loader(), verbose=False)
    return scores["test/loss"]


@pytest.fixture(scope="module", params=["corrected", "reference"])
def common(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return (f"compat={request.param}", "split=official")


@pytest.fixture(scope="module")
def expected(common: tuple[str, ...]) -> float:
    return _loss(*common)


@pytest.mark.parametrize(
    ("precision", "within"), [("bf16-mixed", 2e-2), ("bf16-true", 2e-2), ("64-true", 1e-3)]
)
def test_a_run_in_another_precision_ends_where_float32_does(
    precision: str, within: float, common: tuple[str, ...], expected: float
) -> None:
    assert _loss(*common, precision=precision) == pytest.approx(expected, rel=within)
