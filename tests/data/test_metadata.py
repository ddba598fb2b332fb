"""The metadata encoding against the golden vectors, and its quirk."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from flair2_exp.data.metadata import RECORD, encode, parse_record
from flair2_exp.nomenclature import METADATA_VALUES
from tests.golden_vectors import golden

GOOD: dict[str, Any] = {
    "domain": "D004_2021",
    "patch_centroid_x": 961_488,
    "patch_centroid_y": 6_329_211.2,
    "patch_centroid_z": 39.5,
    "date": "2021-07-09",
    "time": "10h33",
    "camera": "UCE-M3-f120-s06",
}


def records(*changes: dict[str, Any]) -> np.ndarray[Any, Any]:
    return np.array([parse_record(GOOD | change) for change in changes], dtype=RECORD)


def test_encoding_agrees_with_the_baseline() -> None:
    vectors = golden("metadata")
    content = json.loads(str(vectors["metadata_json"]))
    parsed = np.array([parse_record(record) for record in content.values()], dtype=RECORD)
    encoded = encode(parsed, "reference")
    assert encoded.shape == (len(content), METADATA_VALUES)
    np.testing.assert_allclose(encoded, vectors["encoded"], rtol=1e-6, atol=1e-12)


def test_encoding_agrees_with_the_formulas_by_hand() -> None:
    (values,) = encode(records({}))
    for axis, metres in enumerate((961_488.0, 6_329_211.2)):
        for i in range(8):
            angle = metres / 1e8 / 1e8 ** (2 * i / 16)
            assert values[16 * axis + 2 * i] == pytest.approx(math.sin(angle), rel=1e-9)
            assert values[16 * axis + 2 * i + 1] == pytest.approx(math.cos(angle), rel=1e-9)
    assert values[32] == pytest.approx(39.5 / 3164.9099121094)
    assert values[33:35].tolist() == [1, 0]
    assert values[35:39].tolist() == [0, 0, 0, 1]
    turns = (6 / 12, 9 / 31, (10 * 3600 + 33 * 60) / 86_400)
    expected = [(f(2 * math.pi * t) + 1) / 2 for t in turns for f in (math.sin, math.cos)]
    np.testing.assert_allclose(values[39:], expected, atol=1e-12)


def test_the_baselines_month_is_the_same_for_every_month_and_ours_is_not() -> None:
    year = records(*({"date": f"2021-{month:02}-09"} for month in range(1, 13)))
    reference, cyclic = encode(year, "reference")[:, 39:41], encode(year, "cyclic")[:, 39:41]
    np.testing.assert_allclose(reference, np.tile(reference[0], (12, 1)), atol=1e-12)
    distances = np.linalg.norm(cyclic[:, None] - cyclic[None], axis=2)
    assert distances[~np.eye(12, dtype=bool)].min() > 0.2
    assert np.allclose(np.diag(np.roll(distances, 1, axis=1)), distances[0, 1])  # a circle


def test_a_year_without_a_place_is_encoded_as_zeros() -> None:
    values = encode(records({"date": "2017-07-09"}, {"date": "2018-07-09"}))
    assert values[:, 35:39].tolist() == [[0, 0, 0, 0], [1, 0, 0, 0]]


def test_a_camera_that_is_no_ultracam_eagle_and_a_short_hour() -> None:
    (values,) = encode(records({"camera": "CAMERA#020", "time": "9h05"}))
    assert values[33:35].tolist() == [0, 1]
    angle = 2 * math.pi * (9 * 3600 + 5 * 60) / 86_400
    assert values[43] == pytest.approx((math.sin(angle) + 1) / 2)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("patch_centroid_x", "961488"),
        ("patch_centroid_y", None),
        ("patch_centroid_z", math.nan),
        ("patch_centroid_x", True),
        ("date", "2021-02-30"),
        ("date", 20210709),
        ("time", "25h00"),
        ("time", "10:33"),
        ("camera", 7),
    ],
)
def test_a_malformed_record_is_refused_by_the_name_of_its_entry(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key):
        parse_record(GOOD | {key: value})


def test_what_is_no_record_is_refused() -> None:
    with pytest.raises(ValueError, match="not a record"):
        parse_record(["2021-07-09"])
