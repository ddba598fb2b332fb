"""Every precision that a run may ask for on a processor, through Lightning's own conversions."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.configs import run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("precision")


def _loss(root: Path, folder: Path, *overrides: str) -> float:
    return run(root, folder, "metadata=on", *overrides)["test/loss"]


@pytest.fixture(scope="module", params=["corrected", "reference"])
def common(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return (f"compat={request.param}", "split=official", "s2_preproc=raw")


@pytest.fixture(scope="module")
def expected(
    root: Path, common: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> float:
    return _loss(root, tmp_path_factory.mktemp("float32") / "run", *common)


@pytest.mark.parametrize(
    ("precision", "within"), [("bf16-mixed", 2e-2), ("bf16-true", 2e-2), ("64-true", 1e-3)]
)
def test_a_run_in_another_precision_ends_where_float32_does(
    precision: str,
    within: float,
    common: tuple[str, ...],
    expected: float,
    root: Path,
    tmp_path: Path,
) -> None:
    found = _loss(root, tmp_path / "run", *common, f"trainer.precision={precision}")
    assert found == pytest.approx(expected, rel=within)
