"""What the tiles of a map have beside their image: a satellite series, and the flight's metadata.

    flight = Flight.parse("2021-07-09 10h33 UCE-M3 120")
    map_raster(predictor, images, out, MapOptions(series=Path("sentinel2"), flight=flight))

A pure function of the place: neither the order of tiles nor the number of workers matters.
"""

from __future__ import annotations

import datetime
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.warp import transform

from flair2_exp.data import metadata
from flair2_exp.data.grids import Bounds
from flair2_exp.errors import ConfigError, UsageError
from flair2_exp.inference.series import SeriesFolder, open_series

if TYPE_CHECKING:
    from flair2_exp.inference.patches import Acquisitions
    from flair2_exp.inference.predictor import Predictor

log = logging.getLogger(__name__)

Month = Literal["cyclic", "reference"]

FLIGHT_FORM: Final = "DATE TIME CAMERA ALTITUDE, as 2021-07-09 10h33 UCE-M3 120"
"""How a flight is written on a command line."""

LAMBERT_93: Final = CRS.from_epsg(2154)
"""What metadata give places in."""


@dataclass(frozen=True)
class Flight:
    """When, by what and over how high a ground an image was taken.

    Raises:
        UsageError: The time is not a time, or the altitude not a number.
    """

    date: datetime.date
    time: str
    """As "10h33"."""
    camera: str
    """Its name; the networks see whether it holds "UCE" (UltraCam Eagle)."""
    altitude: float
    """Metres of the ground above the sea, one number for the whole image."""

    def __post_init__(self) -> None:
        try:
            self.record(0.0, 0.0)
        except ValueError as error:
            raise UsageError(f"flight: {error}.\nExpected {FLIGHT_FORM}.") from None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a flight as `FLIGHT_FORM` has it; a camera's name may have spaces.

        Raises:
            UsageError: It has another form.
        """
        words = text.split()
        try:
            date, altitude = datetime.date.fromisoformat(words[0]), float(words[-1])
            if len(words) < 4:
                raise ValueError
        except (ValueError, IndexError):
            raise UsageError(f"flight {text!r}: expected {FLIGHT_FORM} (metres).") from None
        return cls(date, words[1], " ".join(words[2:-1]), altitude)

    def record(self, x: float, y: float) -> metadata.Record:
        """Return the metadata of a patch that it took.

        Args:
            x: Of the patch's centre, Lambert-93.
            y: Likewise.
        """
        return metadata.parse_record(
            {
                "patch_centroid_x": x,
                "patch_centroid_y": y,
                "patch_centroid_z": self.altitude,
                "date": self.date.isoformat(),
                "time": self.time,
                "camera": self.camera,
            }
        )


def metadata_of(
    flight: Flight, x: float, y: float, crs: CRS, month: Month = "cyclic"
) -> NDArray[np.float32]:
    """Return the encoded metadata of a patch, (45,)."""
    east, north = (each[0] for each in transform(crs, LAMBERT_93, [x], [y]))
    records = np.array([flight.record(east, north)], dtype=metadata.RECORD)
    encoded: NDArray[np.float32] = metadata.encode(records, month)[0].astype(np.float32)
    return encoded


@dataclass(frozen=True)
class MapSurroundings:
    """The surroundings of the tiles of one map.

    Threads and processes may share it.
    """

    crs: CRS
    """Of the map."""
    series: SeriesFolder | None = None
    flight: Flight | None = None
    month: Month = "cyclic"
    """How the month of the flight is encoded."""

    def of(self, x: float, y: float) -> tuple[Acquisitions | None, NDArray[np.float32] | None]:
        """Return a tile's acquisitions and its encoded metadata, (45,); None of what is not read.

        Args:
            x: Of the tile's centre, in the map's CRS.
            y: Likewise.

        Raises:
            DataError: There are none of this place, or they cannot be read.
        """
        acquisitions = self.series.at(x, y) if self.series else None
        values = metadata_of(self.flight, x, y, self.crs, self.month) if self.flight else None
        return acquisitions, values

    def state(self) -> list[str]:
        """Return what tells whether the surroundings are the same: files, the flight."""
        flight = [str(self.flight)] if self.flight else []
        return [*(self.series.state() if self.series else []), *flight]


def surroundings_of(
    predictor: Predictor,
    crs: CRS,
    bounds: Bounds,
    *,
    series: Path | None = None,
    flight: Flight | None = None,
) -> MapSurroundings | None:
    """Return what a predictor reads beside the images of a map; None where that is nothing.

    Args:
        predictor: What it reads decides; a series or flight that it does not read is not opened.
        crs: Of the map.
        bounds: Of the centres of its tiles: west, south, east, north.
        series: The folder of a satellite series (see `series`).
        flight: That took the images.

    Raises:
        FlairError: Something that is read is missing, or cannot serve this map.
    """
    names = _readers(predictor, "satellite"), _readers(predictor, "metadata")
    if not any(names):
        return None
    if names[0] and series is None:
        raise UsageError(
            f"{names[0]} reads a satellite series, and there is none.\nAdd --series FOLDER, the "
            "Sentinel-2 images of the year about the map, a GeoTIFF for each date."
        )
    if names[1] and flight is None:
        raise UsageError(
            f"{names[1]} reads the metadata of the flight, and there are none.\n"
            f"Add --flight {FLIGHT_FORM}; the altitude is the ground's, in metres."
        )
    folder = None
    if names[0] and series is not None:
        readers = [each for each in predictor.members if "satellite" in each.reads]
        masks = any(each.inputs.s2_preproc.cloud_filter for each in readers)
        folder = open_series(series, crs, sizes=predictor.series_sizes, bounds=bounds, masks=masks)
    if not names[1]:
        return MapSurroundings(crs, folder)
    return MapSurroundings(crs, folder, flight, _month(predictor))


def _readers(predictor: Predictor, what: str) -> str:
    """Return the first run that reads an input; empty where none does."""
    return next((each.stored.name for each in predictor.members if what in each.reads), "")


def _month(predictor: Predictor) -> Month:
    """Return how the runs encode the month.

    Raises:
        ConfigError: In different ways.
    """
    readers = [each for each in predictor.members if "metadata" in each.reads]
    months = {each.inputs.metadata.month: each.stored.name for each in reversed(readers)}
    if len(months) > 1:
        listed = ", ".join(f"{name} metadata.month={month}" for month, name in months.items())
        raise ConfigError(
            f"an ensemble of networks that see the month in different ways: {listed}.\nMap with "
            "those of one way."
        )
    return next(iter(months))
