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
import itertools
import json
import logging
import math
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np

from flair2_exp import values
from flair2_exp.config.data import SampleConfig
from flair2_exp.data.flair import PATCH_METRES
from flair2_exp.data.sample.landscape import THEMES, Landscape
from flair2_exp.data.sample.rendering import plan_flight, render_patch, render_series
from flair2_exp.errors import DataError
from flair2_exp.shortage import shortage

log = logging.getLogger(__name__)

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
"""Year, easting and northing (km, Lambert-93) and altitude (m) of a domain's imagined place.

In the official split the first 8 validate, the next 10 test, and the others train.
"""


def sample_domains(count: int) -> tuple[list[int], list[int], list[int]]:
    """Return the domains that train, validate and test in a sample of `count` (6..40)."""
    numbers = list(_PLACES)
    validation, test = numbers[:8][: count // 4], numbers[8:18][: count // 4]
    return numbers[18:][: count - len(validation) - len(test)], validation, test


def ensure_sample(root: str | os.PathLike[str], options: SampleConfig) -> Path:
    """Return the sample data set of these options at `root`: made if missing, untouched if there.

    The tree appears under its name all at once: it is made in a hidden folder beside it and then
    renamed. When another process makes the same one meanwhile, the first to finish wins.

    Args:
        root: The folder to make; it may exist if it is empty.
        options: What it is made from.

    Raises:
        DataError: The folder holds something else, is the working folder, or cannot be written.
    """
    target = Path(os.path.abspath(root))
    try:
        if is_made(target, options):
            return target
        if target == Path.cwd():  # the renamed folder would be another than the shell stands in
            raise DataError(f"{target} is the working folder; name one to make in it, as ./sample")
        place = target.resolve()  # a link to an empty folder stays a link
        made = [folder for folder in place.parents if not folder.exists()]
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(f".{place.name}-{secrets.token_hex(4)}")
        try:
            partial.mkdir()
            log.info("writing the synthetic sample to %s, this once", target)
            _write_tree(partial, options)
            _publish(partial, place, options)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            for folder in made:  # innermost first; what is in use stays
                with suppress(OSError):
                    folder.rmdir()
    except OSError as error:
        reason = shortage(error, target) or error.strerror or error
        raise DataError(
            f"the sample data set cannot be written to {target} ({reason}); "
            "choose a folder that can be, with dataset.root or paths.data"
        ) from error
    return target


def is_made(root: str | os.PathLike[str], options: SampleConfig) -> bool:
    """Return whether the sample data set of these options is at `root`.

    Raises:
        DataError: The folder holds something else.
    """
    target = Path(os.path.abspath(root))
    present, wanted = _read_manifest(target), _manifest(options)
    if present == wanted:
        return True
    if target.is_symlink() and not target.exists():
        raise DataError(f"{target} is a link to nothing; remove it or choose another folder")
    if target.exists() and not target.is_dir():
        raise DataError(f"{target} is a file; the sample data set needs a folder of its own")
    if not target.exists() or not any(target.iterdir()):
        return False
    if present.get("generator") == wanted["generator"]:
        changes = values.differences(values.flatten(present), values.flatten(wanted)).items()
        listed = (f"{name}={old} instead of {new}" for name, (old, new) in changes)
        content = f"holds a sample data set with {', '.join(listed)}"
    else:
        content = "is not empty and holds no sample data set"
    raise DataError(f"{target} {content}; remove it or choose another folder with dataset.root")


def _manifest(options: SampleConfig) -> dict[str, Any]:
    return {
        "generator": "flair2_exp.data.sample",
        "version": VERSION,
        "options": dataclasses.asdict(options),
    }


def _read_manifest(root: Path) -> dict[str, Any]:
    """Return the manifest of a tree; nothing where there is none that can be read."""
    try:
        content = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _publish(partial: Path, target: Path, options: SampleConfig) -> None:
    """Give a finished tree its name, unless another process has just put the same one there."""
    try:
        partial.rename(target)
    except OSError:
        if not is_made(target, options):
            raise


def _write_tree(root: Path, options: SampleConfig) -> None:
    """Write all files of a sample data set."""
    train, validation, test = sample_domains(options.domains)
    centroids: dict[str, list[int]] = {}
    metadata: dict[str, dict[str, Any]] = {}
    for part, numbers in (("train", sorted(train + validation)), ("test", sorted(test))):
        prefix = "flair_2_" if part == "test" else "flair_"
        for number, index in itertools.product(numbers, range(options.areas_per_domain)):
            area = _Area(number, index, options)
            folders = {}
            for name, leaf in (("aerial", "img"), ("labels", "msk"), ("sen", "sen")):
                folders[name] = root / f"{prefix}{name}_{part}" / area.domain / area.zone / leaf
                folders[name].mkdir(parents=True)
            for centre in area.centres:
                name = f"{len(centroids) + 1:06d}"
                _write_patch(area, folders, name, centre)
                centroids[f"IMG_{name}.tif"] = list(centre)
                metadata[f"IMG_{name}"] = _describe(area, centre)
            _write_series(area, folders["sen"])
    _write_json(root / "flair-2_centroids_sp_to_patch.json", centroids)
    _write_json(root / "flair_aerial_metadata.json", metadata)
    _write_json(root / MANIFEST, _manifest(options))


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def stream(seed: int, *key: int) -> np.random.Generator:
    """Return the source of randomness of a key: 0 of domains, 1 of areas, 2 of scenes."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


class Domain:
    """What the areas of a domain share: its place, its light, its themes.

    Args:
        number: One of `sample_domains`.
        seed: Of the sample.

    Attributes:
        place: Easting and northing, m, Lambert-93, and metres above the sea.
        themes: In the order in which areas take them.
        tile: Name of the Sentinel-2 tile.
    """

    def __init__(self, number: int, seed: int) -> None:
        self.year, east, north, altitude = _PLACES[number]
        self.place = (1000 * east, 1000 * north, altitude)
        rng = stream(seed, 0, number)
        self.flight = plan_flight(rng, self.year)
        self.themes = [str(theme) for theme in rng.permutation(THEMES)]
        letters = "".join("ABCDEFGHJKLMNPQRSTUVWXYZ"[i] for i in rng.integers(0, 24, 2))
        self.tile = f"T{31 + (east > 900)}{'TU'[north > 6700]}{letters}"
        self.name = f"D{number:03d}_{self.year}"


class _Area:
    """One area: its place, its ground, its light, and where its patches are.

    Attributes:
        shape: H and W of the satellite array.
        centres: Row and column of each patch's centre in it.
        origin: Easting and northing (m) of its north-western corner.
    """

    def __init__(self, number: int, index: int, options: SampleConfig) -> None:
        domain = Domain(number, options.seed)
        east, north, altitude = domain.place
        self.year, self.flight, self.tile = domain.year, domain.flight, domain.tile
        theme = domain.themes[index % len(domain.themes)]
        self.domain, self.zone = domain.name, f"Z{index + 1}_{theme}"
        rng, ground_rng, self.aerial_rng, self.satellite_rng = (
            stream(options.seed, 1, number, index, part) for part in range(4)
        )
        self.shape, self.centres = _arrange(rng, options)
        self.altitude = altitude * float(rng.uniform(0.85, 1.15))
        # Areas of a domain lie some kilometres apart, on the grid of the satellite's pixels.
        self.origin = (
            east + 4000 * (index % 5) + 10 * int(rng.integers(0, 100)),
            north + 4000 * (index // 5) + 10 * int(rng.integers(0, 100)),
        )
        extent = (10.0 * self.shape[0], 10.0 * self.shape[1])
        self.landscape = Landscape(ground_rng, extent, theme, self.altitude)
        self.pixels = options.patch_size


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

    image, mask = render_patch(
        area.aerial_rng,
        area.landscape,
        area.flight,
        (10.0 * centre[0], 10.0 * centre[1]),
        PATCH_METRES,
        area.pixels,
    )
    pixel = PATCH_METRES / area.pixels
    west = area.origin[0] + 10 * centre[1] - PATCH_METRES / 2
    north = area.origin[1] - 10 * centre[0] + PATCH_METRES / 2
    profile = {
        "driver": "GTiff",
        "dtype": "uint8",
        "width": area.pixels,
        "height": area.pixels,
        "crs": "EPSG:2154",
        "transform": rasterio.Affine(pixel, 0, west, 0, -pixel, north),
    }
    path = folders["aerial"] / f"IMG_{name}.tif"
    with rasterio.open(path, "w", count=5, interleave="pixel", **profile) as file:
        file.write(image)
    path = folders["labels"] / f"MSK_{name}.tif"
    with rasterio.open(path, "w", count=1, compress="deflate", **profile) as file:
        file.write(mask, 1)


def _write_series(area: _Area, folder: Path) -> None:
    """Write the satellite arrays of one area and the names of its products."""
    series = render_series(
        area.satellite_rng, area.landscape, area.shape, area.year, area.altitude, area.tile
    )
    stem = f"SEN2_sp_{area.domain}-{area.zone}"
    np.save(folder / f"{stem}_data.npy", series.data)
    np.save(folder / f"{stem}_masks.npy", series.masks)
    text = "".join(f"{product}\n" for product in series.products)
    (folder / f"{stem}_products.txt").write_text(text, encoding="utf-8")
