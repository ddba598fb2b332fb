from __future__ import annotations

import json

import pytest

from benchmarks import report
from benchmarks.harness import main


@pytest.mark.parametrize(("bound", "status"), [(10.0, 0), (1e-9, 1)])
def test_the_reports_benchmark_has_a_bound_and_a_status(
    bound: float, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "BOUND", bound)
    small = ["--resamples", "100", "--patches", "400", "--runs", "12", "--metrics", "20"]
    assert main(["report", "--rounds", "1", *small]) == status
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [each["unit"] for each in record["figures"]] == ["s"] * 5
    assert record["figures"][-1]["name"] == "12 runs × 20 metrics, folders"
    assert record["figures"][0]["must_reach"] == bound
    assert record["facts"]["test set"] == "400 patches in 193 areas"
