"""The sample data set: a synthetic FLAIR #2 tree, made from a seed in seconds.

It has the released layout (aerial images, masks, satellite series with snow and cloud
probabilities, product names, centroids, metadata) and the official domain numbers, so that
everything that reads FLAIR #2 reads it too. Its figures say nothing about FLAIR #2.

The same options give the same bytes with the same versions of NumPy, SciPy and GDAL. Each area
draws from its own random streams, keyed by seed, domain and number, so it does not depend on how
many others there are.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flair2_exp import values
from flair2_exp.config.data import SampleConfig
from flair2_exp.errors import DataError

if TYPE_CHECKING:
    import numpy as np

    from flair2_exp.data.sample.landscape import Landscape
    from flair2_exp.data.sample.rendering import Flight

PATCH_METRES: Final = 102.4
"""Width of a patch, whatever its pixels: 512 pixels of 0.2 m in FLAIR #2."""

MANIFEST: Final = "sample.json"
"""The file that tells which options made a tree. It is written last."""

VERSION: Final = 1
"""Of the generator: it goes up when the same options give other bytes."""

_SPACING: Final = 11
"""Satellite pixels between neighbouring patches, so that each centre lies on a corner of a pixel
and patches (10.24 pixels) do not overlap."""

_PLACES: Final[dict[int, tuple[int, int, int, int]]] = {
    4: (2021, 960, 6330, 1050), 14: (2020, 455, 6890, 80), 29: (2021, 180, 6815, 90),
    31: (2019, 560, 6260, 220), 58: (2020, 735, 6670, 240), 66: (2021, 660, 6170, 620),
    67: (2021, 1035, 6850, 230), 77: (2021, 715, 6840, 100),
    15: (2020, 665, 6440, 850), 22: (2021, 270, 6830, 120), 26: (2020, 870, 6400, 450),
    36: (2020, 600, 6635, 150), 61: (2020, 490, 6840, 190), 64: (2021, 410, 6250, 300),
    68: (2021, 1020, 6755, 420), 69: (2020, 830, 6530, 330), 71: (2020, 820, 6620, 300),
    84: (2021, 885, 6325, 350),
    63: (2019, 710, 6515, 800), 33: (2021, 420, 6420, 60), 81: (2020, 630, 6300, 260),
    74: (2020, 960, 6555, 1000), 8: (2019, 820, 6950, 230), 13: (2020, 890, 6280, 130),
    21: (2020, 840, 6700, 330), 38: (2021, 900, 6465, 780), 6: (2020, 1010, 6320, 850),
    7: (2020, 810, 6405, 520), 9: (2019, 580, 6200, 700), 16: (2020, 480, 6515, 120),
    17: (2018, 405, 6530, 40), 23: (2020, 620, 6555, 430), 30: (2021, 790, 6325, 220),
    32: (2019, 490, 6290, 170), 34: (2021, 730, 6275, 220), 35: (2020, 350, 6795, 70),
    41: (2021, 575, 6720, 110), 44: (2020, 350, 6705, 40), 46: (2019, 590, 6390, 280),
    49: (2020, 430, 6705, 70),
}  # fmt: skip
"""Year, easting and northing (km, Lambert-93) and altitude (m) of a domain's imagined place."""

_VALIDATION: Final = (4, 14, 29, 31, 58, 66, 67, 77)
_TEST: Final = (15, 22, 26, 36, 61, 64, 68, 69, 71, 84)


def sample_domains(count: int) -> tuple[list[int], list[int], list[int]]:
    """Return the domains that train, validate and test in a sample of `count` (6..40)."""
    validation = _VALIDATION[: count // 4]
    test = _TEST[: count // 4]
    others = [number for number in _PLACES if number not in _VALIDATION + _TEST]
    train = others[: count - len(validation) - len(test)]
    return train, list(validation), list(test)


def generate_sample(root: str | os.PathLike[str], options: SampleConfig) -> Path:
    """Write a sample data set as the new folder `root`.

    The tree appears under its name all at once: it is made in a hidden folder beside it and then
    renamed. When another process makes the same one meanwhile, the first to finish wins.

    Args:
        root: The folder to make; it may exist if it is empty.
        options: What it is made from.

    Returns:
        The folder.

    Raises:
        DataError: The folder holds something else, is the working folder, or cannot be written.
    """
    target = Path(os.path.abspath(root))
    if target == Path.cwd():  # the renamed folder would be another than the shell stands in
        raise DataError(f"{target} is the working folder; name one to make in it, as ./sample")
    try:
        _require_empty(target, options)
        place = target.resolve()  # a link to an empty folder stays a link
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(f".{place.name}-{secrets.token_hex(4)}")
        try:
            partial.mkdir()
            _write_tree(partial, options)
            _publish(partial, place, options)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(
            f"the sample data set cannot be written to {target} ({reason}); "
            "choose a folder that can be, with dataset.root or paths.data"
        ) from error
    return target


def ensure_sample(root: str | os.PathLike[str], options: SampleConfig) -> Path:
    """Return the sample data set of these options at `root`: made if missing, untouched if there.

    Raises:
        DataError: The folder holds something else, or cannot be written.
    """
    target = Path(os.path.abspath(root))
    if _is_made(target, options):
        return target
    return generate_sample(target, options)


def is_made(root: str | os.PathLike[str], options: SampleConfig) -> bool:
    """Return whether the sample data set of these options is at `root`.

    Raises:
        DataError: The folder holds something else.
    """
    target = Path(os.path.abspath(root))
    if not _is_made(target, options):
        _require_empty(target, options)
        return False
    return True


def _require_empty(target: Path, options: SampleConfig) -> None:
    """Refuse a place that holds something."""
    if target.is_symlink() and not target.exists():
        raise DataError(f"{target} is a link to nothing; remove it or choose another folder")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(_occupied(target, options))


def _manifest(options: SampleConfig) -> dict[str, Any]:
    return {
        "generator": "flair2_exp.data.sample",
        "version": VERSION,
        "options": dataclasses.asdict(options),
    }


def _is_made(target: Path, options: SampleConfig) -> bool:
    return _read_manifest(target) == _manifest(options)


def _read_manifest(root: Path) -> dict[str, Any] | None:
    """Return the manifest of a tree; None where there is none that can be read."""
    try:
        content = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _occupied(target: Path, options: SampleConfig) -> str:
    """Return what a folder holds instead of the wanted sample."""
    if not target.is_dir():
        return f"{target} is a file; the sample data set needs a folder of its own"
    fix = "remove it or choose another folder with dataset.root"
    present, wanted = _read_manifest(target), _manifest(options)
    if present == wanted:
        return f"{target} holds this sample data set already; {fix}"
    if present is None or present.get("generator") != wanted["generator"]:
        return f"{target} is not empty and holds no sample data set; {fix}"
    if present.get("version") != VERSION:
        return (
            f"{target} holds a sample data set of generator version {present.get('version')}, "
            f"this is version {VERSION}; {fix}"
        )
    there = present.get("options")
    changes = values.differences(there if isinstance(there, dict) else {}, wanted["options"])
    differences = ", ".join(
        f"{name}={old} instead of {new}" for name, (old, new) in changes.items()
    )
    return f"{target} holds a sample data set with {differences}; {fix}"


def _publish(partial: Path, target: Path, options: SampleConfig) -> None:
    """Give a finished tree its name, unless another process has just put the same one there."""
    try:
        partial.rename(target)
    except OSError:
        if _is_made(target, options):
            return
        if target.exists():
            raise DataError(_occupied(target, options)) from None
        raise


def _write_tree(root: Path, options: SampleConfig) -> None:
    """Write all files of a sample data set."""
    train, validation, test = sample_domains(options.domains)
    centroids: dict[str, list[int]] = {}
    metadata: dict[str, dict[str, Any]] = {}
    first = 1
    for part, numbers in (("train", sorted(train + validation)), ("test", sorted(test))):
        prefix = "flair_2_" if part == "test" else "flair_"
        for area in _areas(numbers, options):
            folders = {
                name: root / f"{prefix}{name}_{part}" / area.domain / area.zone
                for name in ("aerial", "labels", "sen")
            }
            _write_area(area, folders, first, centroids, metadata)
            first += options.patches_per_area
    _write_json(root / "flair-2_centroids_sp_to_patch.json", centroids)
    _write_json(root / "flair_aerial_metadata.json", metadata)
    _write_json(root / MANIFEST, _manifest(options))


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class _Area:
    """One area: its place, its ground, its light, and where its patches are."""

    domain: str
    zone: str
    year: int
    altitude: float
    origin: tuple[int, int]
    """Easting and northing (m) of the satellite array's north-western corner."""
    shape: tuple[int, int]
    """H and W of the satellite array."""
    centres: list[tuple[int, int]]
    """Row and column of each patch's centre."""
    tile: str
    flight: Flight
    landscape: Landscape
    patch_size: int
    aerial_rng: np.random.Generator
    satellite_rng: np.random.Generator


def _rng(seed: int, *key: int) -> np.random.Generator:
    import numpy as np

    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _areas(numbers: list[int], options: SampleConfig) -> Iterator[_Area]:
    """Yield the areas of some domains, one after the other."""
    from flair2_exp.data.sample.landscape import THEMES, Landscape
    from flair2_exp.data.sample.rendering import plan_flight

    for number in numbers:
        year, east, north, altitude = _PLACES[number]
        rng = _rng(options.seed, 0, number)
        flight = plan_flight(rng, year)
        themes = rng.permutation(THEMES)
        letters = "".join("ABCDEFGHJKLMNPQRSTUVWXYZ"[i] for i in rng.integers(0, 24, 2))
        tile = f"T{31 + (east > 900)}{'TU'[north > 6700]}{letters}"
        for index in range(options.areas_per_domain):
            streams = [_rng(options.seed, 1, number, index, stream) for stream in range(4)]
            shape, centres = _arrange(streams[0], options)
            theme = str(themes[index % len(themes)])
            height = altitude * float(streams[0].uniform(0.85, 1.15))
            extent = (10.0 * shape[0], 10.0 * shape[1])
            # Areas of a domain lie some kilometres apart, on the grid of the satellite's pixels.
            origin = (
                1000 * east + 4000 * (index % 5) + 10 * int(streams[0].integers(0, 100)),
                1000 * north + 4000 * (index // 5) + 10 * int(streams[0].integers(0, 100)),
            )
            yield _Area(
                domain=f"D{number:03d}_{year}",
                zone=f"Z{index + 1}_{theme}",
                year=year,
                altitude=height,
                origin=origin,
                shape=shape,
                centres=centres,
                tile=tile,
                flight=flight,
                landscape=Landscape(streams[1], extent, theme, height),
                patch_size=options.patch_size,
                aerial_rng=streams[2],
                satellite_rng=streams[3],
            )


def _arrange(
    rng: np.random.Generator, options: SampleConfig
) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """Draw the shape of an area's satellite array, and the patches' centres in it.

    Every crop of `super_patch` pixels around a centre lies inside.
    """
    columns = math.ceil(math.sqrt(options.patches_per_area))
    rows = math.ceil(options.patches_per_area / columns)
    reach = options.super_patch // 2 + options.super_patch % 2
    top, left, bottom, right = (reach + int(extra) for extra in rng.integers(0, 7, 4))
    shape = (top + _SPACING * (rows - 1) + bottom, left + _SPACING * (columns - 1) + right)
    centres = [
        (top + _SPACING * (patch // columns), left + _SPACING * (patch % columns))
        for patch in range(options.patches_per_area)
    ]
    return shape, centres


def _write_area(
    area: _Area,
    folders: dict[str, Path],
    first: int,
    centroids: dict[str, list[int]],
    metadata: dict[str, dict[str, Any]],
) -> None:
    """Write the files of one area; its patches are numbered from `first` on."""
    for name, leaf in (("aerial", "img"), ("labels", "msk"), ("sen", "sen")):
        folders[name] = folders[name] / leaf
        folders[name].mkdir(parents=True)
    for patch, centre in enumerate(area.centres):
        name = f"{first + patch:06d}"
        _write_patch(area, folders, name, centre)
        centroids[f"IMG_{name}.tif"] = list(centre)
        metadata[f"IMG_{name}"] = _describe(area, centre)
    _write_series(area, folders["sen"])


def _describe(area: _Area, centre: tuple[int, int]) -> dict[str, Any]:
    """Return the aerial metadata of a patch."""
    altitude = area.landscape.ground(10.0 * centre[0], 10.0 * centre[1])
    return {
        "domain": area.domain,
        "zone": area.zone,
        "patch_centroid_x": float(area.origin[0] + 10 * centre[1]),
        "patch_centroid_y": float(area.origin[1] - 10 * centre[0]),
        "patch_centroid_z": round(altitude, 1),
        "date": area.flight.date.isoformat(),
        "time": area.flight.time,
        "camera": area.flight.camera,
    }


def _write_patch(area: _Area, folders: dict[str, Path], name: str, centre: tuple[int, int]) -> None:
    """Write the image and the mask of one patch."""
    import rasterio
    from affine import Affine
    from rasterio.crs import CRS

    from flair2_exp.data.sample.rendering import render_patch

    image, mask = render_patch(
        area.aerial_rng,
        area.landscape,
        area.flight,
        (10.0 * centre[0], 10.0 * centre[1]),
        PATCH_METRES,
        area.patch_size,
    )
    pixel = PATCH_METRES / area.patch_size
    west = area.origin[0] + 10 * centre[1] - PATCH_METRES / 2
    north = area.origin[1] - 10 * centre[0] + PATCH_METRES / 2
    profile = {
        "driver": "GTiff",
        "dtype": "uint8",
        "width": area.patch_size,
        "height": area.patch_size,
        "crs": CRS.from_epsg(2154),
        "transform": Affine(pixel, 0, west, 0, -pixel, north),
    }
    path = folders["aerial"] / f"IMG_{name}.tif"
    with rasterio.open(path, "w", count=5, interleave="pixel", **profile) as file:
        file.write(image)
    path = folders["labels"] / f"MSK_{name}.tif"
    with rasterio.open(path, "w", count=1, compress="deflate", **profile) as file:
        file.write(mask, 1)


def _write_series(area: _Area, folder: Path) -> None:
    """Write the satellite arrays of one area and the names of its products."""
    import numpy as np

    from flair2_exp.data.sample.rendering import render_series

    series = render_series(
        area.satellite_rng, area.landscape, area.shape, area.year, area.altitude, area.tile
    )
    stem = f"SEN2_sp_{area.domain}-{area.zone}"
    np.save(folder / f"{stem}_data.npy", series.data)
    np.save(folder / f"{stem}_masks.npy", series.masks)
    text = "".join(f"{product}\n" for product in series.products)
    (folder / f"{stem}_products.txt").write_text(text, encoding="utf-8")
