from __future__ import annotations

import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.warp import transform

from flair2_exp.config.data import MetadataConfig, S2PreprocConfig
from flair2_exp.data import metadata
from flair2_exp.errors import ConfigError, DataError, FlairError, UsageError
from flair2_exp.inference.predictor import Predictor
from flair2_exp.inference.surroundings import (
    Flight,
    MapSurroundings,
    metadata_of,
    surroundings_of,
)
from tests.inference.series_made import LAMBERT, area, write_images

MADE = area()
X, Y = MADE.centre(20, 24)
FLIGHT = Flight(datetime.date(2021, 7, 9), "10h33", "UCE-M3-f120-s06", 120.5)


def member(reads: str, name: str = "run", *, size: int = 16, cloud_filter: bool = True,
           month: Any = "cyclic") -> Any:  # fmt: skip
    """What is asked of a predictor's member."""
    inputs = SimpleNamespace(
        s2_preproc=S2PreprocConfig(size=size, cloud_filter=cloud_filter),
        metadata=MetadataConfig(month=month),
    )
    stored = SimpleNamespace(name=name)
    return SimpleNamespace(reads=frozenset(reads.split()), inputs=inputs, stored=stored)


def predictor(*members: Any) -> Predictor:
    sizes = (m.inputs.s2_preproc.size for m in members if "satellite" in m.reads)
    return cast(Predictor, SimpleNamespace(members=members, series_sizes=frozenset(sizes)))


def surroundings(*members: Any, **options: Any) -> MapSurroundings | None:
    return surroundings_of(predictor(*members), LAMBERT, (X, Y, X, Y), **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("series"), MADE)


@given(
    date=st.dates(datetime.date(2016, 1, 1), datetime.date(2035, 1, 1)),
    hour=st.integers(0, 23),
    camera=st.sampled_from(["UCE-M3-f120-s06", "CAMERA#016", "DMC III 27"]),
    altitude=st.floats(-10, 4800),
)
def test_a_flight_is_read_as_it_is_written(
    date: datetime.date, hour: int, camera: str, altitude: float
) -> None:
    made = Flight(date, f"{hour}h05", camera, altitude)
    assert Flight.parse(f"{date} {hour}h05 {camera} {altitude!r}") == made


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2021-07-09",
        "2021-07-09 10h33 120",
        "9/7/2021 10h33 UCE 120",
        "2021-02-30 10h33 UCE 120",
        "2021-07-09 10:33 UCE 120",
        "2021-07-09 25h00 UCE 120",
        "2021-07-09 10h33 UCE 120m",
        "2021-07-09 10h33 UCE nan",
    ],
)
def test_another_text_is_no_flight(text: str) -> None:
    with pytest.raises(UsageError, match="DATE TIME CAMERA ALTITUDE, as 2021-07-09") as raised:
        Flight.parse(text)
    assert len(str(raised.value).splitlines()) <= 2


@pytest.mark.parametrize("month", ["cyclic", "reference"])
def test_metadata_are_those_of_a_patch_of_the_data_set(month: Any) -> None:
    content = {
        "patch_centroid_x": 652_345.6, "patch_centroid_y": 6_861_234.5,
        "patch_centroid_z": 120.5, "date": "2021-07-09", "time": "10h33",
        "camera": "UCE-M3-f120-s06",
    }  # fmt: skip
    records = np.array([metadata.parse_record(content)], dtype=metadata.RECORD)
    expected = metadata.encode(records, month)[0].astype(np.float32)
    place = (652_345.6, 6_861_234.5)
    values = metadata_of(FLIGHT, *place, LAMBERT, month)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, expected)
    utm = CRS.from_epsg(32631)
    (east,), (north,) = transform(LAMBERT, utm, [place[0]], [place[1]])
    np.testing.assert_allclose(metadata_of(FLIGHT, east, north, utm, month), expected, atol=1e-6)


def test_a_predictor_of_images_alone_needs_nothing(tmp_path: Path) -> None:
    assert surroundings(member("aerial"), series=tmp_path / "not looked at", flight=FLIGHT) is None


def test_a_tile_gets_what_the_members_read_and_no_more(folder: Path) -> None:
    cases = {
        "aerial satellite": (True, False),
        "aerial metadata": (False, True),
        "satellite metadata": (True, True),
    }
    for reads, expected in cases.items():
        made = surroundings(member(reads), series=folder, flight=FLIGHT)
        assert made is not None
        values = made.of(X, Y)
        assert tuple(each is not None for each in values) == expected


def test_the_largest_of_the_members_sizes_is_cut(folder: Path) -> None:
    small = member("satellite", size=16, cloud_filter=False)
    made = surroundings(small, member("aerial satellite", size=24), series=folder)
    assert made is not None
    cut = made.of(X, Y)[0]
    assert cut is not None
    assert cut.frames.shape == (5, 10, 24, 24)
    assert cut.probabilities is not None  # the second filters
    unfiltered = surroundings(small, series=folder)
    assert unfiltered is not None
    first = unfiltered.of(X, Y)[0]
    assert first is not None
    assert first.probabilities is None
    np.testing.assert_array_equal(
        cut.preprocessed(small.inputs.s2_preproc).frames,
        first.preprocessed(small.inputs.s2_preproc).frames,
    )


@pytest.mark.parametrize(
    ("reads", "options", "parts"),
    [
        ("aerial satellite", {"flight": FLIGHT}, ("run reads a satellite", "--series FOLDER")),
        ("aerial metadata", {"series": Path()}, ("run reads the metadata", "--flight DATE TIME")),
    ],
)
def test_what_is_missing_is_named_with_the_flag_to_add(
    reads: str, options: dict[str, Any], parts: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError) as raised:
        surroundings(member("aerial", "other"), member(reads), **options)
    assert all(part in str(raised.value) for part in parts)
    assert len(str(raised.value).splitlines()) == 2


def test_members_that_see_the_month_in_different_ways_are_refused() -> None:
    members = [
        member("aerial metadata", "first"),
        member("aerial", "second", month="reference"),
        member("metadata", "third", month="reference"),
    ]
    made = surroundings(*members[:2], flight=FLIGHT)
    assert made is not None
    assert made.month == "cyclic"
    match = "third metadata.month=reference, first metadata.month=cyclic"
    with pytest.raises(ConfigError, match=match):
        surroundings(*members, flight=FLIGHT)


@pytest.mark.parametrize("reads", ["satellite", "aerial satellite metadata"])
def test_a_series_that_cannot_serve_is_refused_at_once(tmp_path: Path, reads: str) -> None:
    with pytest.raises(FlairError, match="is not a folder"):
        surroundings(member(reads), series=tmp_path / "missing", flight=FLIGHT)
    write_images(tmp_path, MADE, "none")
    with pytest.raises(DataError, match="no snow and cloud probabilities"):
        surroundings(member(reads), series=tmp_path, flight=FLIGHT)
    with pytest.raises(DataError, match="does not cover the map"):
        surroundings(member(reads, size=64, cloud_filter=False), series=tmp_path, flight=FLIGHT)
