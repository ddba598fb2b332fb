"""Every precision that a run may ask for on a processor, through Lightning's own conversions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flair2_exp import experiment, results
from tests.configs import SMALL_SAMPLE, compose_config


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("precision")


def _loss(root: Path, folder: Path, *overrides: str) -> float:
    config = compose_config(
        f"paths.root={root}",
        "preset=debug",
        "tracking=off",
        "trainer=cpu",
        "metadata=on",
        *SMALL_SAMPLE,
        *overrides,
    )
    experiment.run(config, folder, overrides)
    metrics: dict[str, float] = json.loads((folder / results.METRICS).read_text())
    return metrics["test/loss"]


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
