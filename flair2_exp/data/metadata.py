"""The aerial patch's metadata (place, altitude, camera, date, time) as 45 numbers.

The encoding is the published baseline's: FLAIR #2 (Garioud et al., 2023), and for the coordinates
the sinusoidal code of Vaswani et al. (2017), section 3.5.
"""

from __future__ import annotations

import datetime
import re
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

RECORD: Final = np.dtype(
    {
        "names": ["x", "y", "z", "year", "month", "day", "seconds", "uce"],
        "formats": ["f8", "f8", "f8", "i2", "i1", "i1", "i4", "?"],
    }
)
"""One patch's metadata: Lambert-93 metres, date, seconds of the day, whether an UltraCam Eagle."""

YEARS: Final = (2018, 2019, 2020, 2021)
"""The years that have a place in the one-hot code."""

_COORDINATE_SCALE: Final = 1e8
"""The baseline's constant ("10e7"): divisor of the coordinates and base of the code."""

_ALTITUDE_SCALE: Final = 3164.9099121094
"""The baseline's largest altitude, metres."""

_TIME: Final = re.compile(r"(\d{1,2})h(\d{2})")

Record = tuple[float, float, float, int, int, int, int, bool]


def parse_record(content: object) -> Record:
    """Read one patch's entry of the metadata file as the fields of `RECORD`.

    Args:
        content: A dictionary with `patch_centroid_x`, `patch_centroid_y` and `patch_centroid_z`
            (metres), `date` ("2021-07-09"), `time` ("10h33") and `camera`; other keys are ignored.

    Returns:
        x, y, z, year, month, day, seconds of the day, whether the camera is an UltraCam Eagle.

    Raises:
        ValueError: An entry is missing or is not what it should be; the message names it.
    """
    if not isinstance(content, dict):
        raise ValueError("not a record of named values")
    place: dict[str, float] = {}
    for axis in "xyz":
        name = f"patch_centroid_{axis}"
        value = content.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise ValueError(f"{name} is {value!r}, not a number of metres")
        place[axis] = float(value)
    try:
        date = datetime.date.fromisoformat(content.get("date", ""))
    except (TypeError, ValueError):
        raise ValueError(f"date is {content.get('date')!r}, not like 2021-07-09") from None
    time = _TIME.fullmatch(str(content.get("time")))
    if time is None or not (int(time[1]) < 24 and int(time[2]) < 60):
        raise ValueError(f"time is {content.get('time')!r}, not like 10h33")
    camera = content.get("camera")
    if not isinstance(camera, str):
        raise ValueError(f"camera is {camera!r}, not a name")
    seconds = 3600 * int(time[1]) + 60 * int(time[2])
    day = (date.year, date.month, date.day, seconds)
    return place["x"], place["y"], place["z"], *day, "UCE" in camera


def encode(
    records: NDArray[np.void], month: Literal["cyclic", "reference"] = "cyclic"
) -> NDArray[np.float64]:
    """Encode records as the network's metadata input.

    Args:
        records: (N,) of dtype `RECORD`.
        month: `cyclic` places the month at 2π(month − 1)/12; `reference` at the baseline's
            2π(month − 1/12), which is the same angle for every month.

    Returns:
        (N, 45) float64: 16 values for x and 16 for y (sine and cosine interleaved, in -1..1),
        altitude over 3164.9 m, camera one-hot (UltraCam Eagle, other), year one-hot (2018..2021;
        all zero for another year), and sine and cosine, moved to 0..1, of month, day and time.
    """
    place = [_coordinate_code(records[axis]) for axis in "xy"]
    altitude = records["z"][:, None] / _ALTITUDE_SCALE
    camera = np.stack([records["uce"], ~records["uce"]], axis=1).astype(np.float64)
    year = (records["year"][:, None] == np.array(YEARS)).astype(np.float64)
    months = records["month"].astype(np.float64)
    turn = (months - 1) / 12 if month == "cyclic" else months - 1 / 12
    cycles = [_cyclic(turn), _cyclic(records["day"] / 31), _cyclic(records["seconds"] / 86_400)]
    return np.concatenate([*place, altitude, camera, year, *cycles], axis=1)


def _coordinate_code(metres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (N, 16) sine and cosine, interleaved, at eight frequencies."""
    frequencies = _COORDINATE_SCALE ** (-2 * np.arange(8) / 16)
    angles = (metres / _COORDINATE_SCALE)[:, None] * frequencies
    return np.stack([np.sin(angles), np.cos(angles)], axis=2).reshape(len(metres), 16)


def _cyclic(turns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (N, 2) sine and cosine of an angle in turns, moved from -1..1 to 0..1."""
    angles = 2 * np.pi * turns
    return (np.stack([np.sin(angles), np.cos(angles)], axis=1) + 1) / 2
