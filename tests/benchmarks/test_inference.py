from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import inference
from benchmarks.harness import main
from flair2_exp.inference.tiling import Axis


@pytest.mark.thorough
def test_the_benchmark_of_maps_measures_what_has_a_bound(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inference, "SHARE", 1e-6)
    small = ["--patch", "64", "--tiles", "2", "--sizes", "128", "200", "--threads", "1",
             "--encoder", "tu-tf_mobilenetv3_small_minimal_100"]  # fmt: skip
    main(["inference", "--rounds", "1", *small])
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    bounds = [each["must_reach"] for each in record["figures"]]
    assert bounds == [1e-6, 1e-6, 0.05, 8.2, 1.1]
    assert all(each["median"] > 0 for each in record["figures"])


def test_the_error_at_seams_is_counted_near_the_borders_of_tiles() -> None:
    axis = Axis(128, 64, 0)
    made = np.zeros((128, 128), np.uint8)
    reference = made.copy()
    reference[60:68] = 1  # along the one border between rows
    near, far = inference.seam_error(made, reference, axis, axis)
    assert far == 0
    assert near == pytest.approx(8 * 128 / (128**2 - (128 - 15) ** 2))
