"""A scene of the sample's world: one large raster with its truth and its satellite series.

    image.tif         red, green, blue, near infrared, elevation, uint8, as the sample's patches
    truth.tif         values 1..19, as the sample's masks
    series/*.tif      an acquisition each: ten bands, snow and cloud, 10 m; reaching half a
                      super-patch and half a patch beyond the image, for tiles across its edge
    scene.json        what it was made from, and when it was flown

It lies in the first of the sample's test domains, beside its areas: a network trained on the sample
has seen the like of it, but not this ground. The image is rendered block by block, so its size
costs disk alone; the series is made as a whole, about 0.7 GB of memory for 32 x 32 patches.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flair2_exp.config.data import SampleConfig
from flair2_exp.data.flair import PATCH_METRES
from flair2_exp.data.sample.landscape import Floats, Landscape
from flair2_exp.data.sample.rendering import render_patch, render_series
from flair2_exp.data.sample.tree import Domain, sample_domains, stream
from flair2_exp.errors import DataError
from flair2_exp.nomenclature import AERIAL_BANDS, SATELLITE_BANDS
from flair2_exp.shortage import shortage

Pixels: TypeAlias = NDArray[np.uint8]

MOST_PATCHES: Final = 32
"""Patches on a side of the largest scene."""

_BLOCK: Final = 384
"""Pixels on a side of what is rendered at once, and of the files' blocks."""
_PERIOD: Final = 192
"""Pixels after which the noise repeats: half a block, since elevations are rendered at half the
resolution of fine images. No power of 2, so that tiles do not all see the same."""
_REACH: Final = 4.0
"""Metres over which noise is blurred beyond the renderer's own margin."""
_PIXEL: Final = 10
"""Metres of a satellite pixel."""
_WEST: Final = 8000
"""Metres from the domain's areas, which lie 4 km apart; the largest scene takes 4.4 km."""


@dataclass(frozen=True)
class Scene:
    """The files of a scene."""

    image: Path
    truth: Path
    series: Path | None
    """The folder."""
    flight: str
    """Date, time, camera and metres of the ground above the sea, as a command line takes them."""


def write_scene(
    folder: str | os.PathLike[str], *, patches: int = 3, options: SampleConfig, series: bool = True
) -> Scene:
    """Write a scene; it appears under its name all at once.

    The same options give the same bytes with the same versions of NumPy, SciPy and GDAL.

    Args:
        folder: To make; it may exist if it is empty.
        patches: On a side, 1 to 32.
        options: Of the sample: seed, pixels of a patch, and the super-patch that fits around tiles
            at the image's edge; `domains` chooses the test domain.
        series: Whether to write the satellite series.

    Raises:
        DataError: The folder holds something, or cannot be written; or `patches` is out of range.
    """
    target = Path(os.path.abspath(folder))
    if not 1 <= patches <= MOST_PATCHES:
        raise DataError(f"a scene of {patches} patches on a side; expected 1 to {MOST_PATCHES}.")
    partial = target.with_name(f".{target.name}-{secrets.token_hex(4)}")
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise DataError(f"{target} is there already; remove it or choose another folder.")
        partial.mkdir(parents=True)
        ground = _Ground(patches, options)
        _write_image(partial, ground)
        if series:
            _write_series(partial / "series", ground)
        made: dict[str, Any] = {"patches": patches, "series": series, "flight": ground.described}
        made["options"] = dataclasses.asdict(options)
        (partial / "scene.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
        partial.rename(target)
    except OSError as error:
        reason = shortage(error, target) or error.strerror or error
        raise DataError(f"the scene cannot be written to {target} ({reason}).") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    folder_of_series = target / "series" if series else None
    return Scene(target / "image.tif", target / "truth.tif", folder_of_series, ground.described)


class _Ground:
    """What is seen, from where and when.

    Attributes:
        pixels: On a side of the image.
        pixel: Metres.
        margin: Metres from the landscape's north-western corner to the image's.
        shape: H and W of the satellite series, which begins at that corner.
        origin: Easting and northing (m) of it.
    """

    def __init__(self, patches: int, options: SampleConfig) -> None:
        number = sample_domains(options.domains)[2][0]
        self.domain = Domain(number, options.seed)
        self.seed = options.seed
        self.pixels = patches * options.patch_size
        self.pixel = PATCH_METRES / options.patch_size
        self.margin = _PIXEL * math.ceil((options.super_patch + PATCH_METRES / _PIXEL) / 2)
        side = math.ceil(patches * PATCH_METRES / _PIXEL) + 2 * self.margin // _PIXEL
        self.shape = (side, side)
        east, north, self.altitude = self.domain.place
        self.origin = (east - _WEST, north)
        extent = (float(_PIXEL * side), float(_PIXEL * side))
        theme = self.domain.themes[0]
        self.landscape = Landscape(stream(self.seed, 2, 0), extent, theme, self.altitude)

    @property
    def described(self) -> str:
        """The flight, over the ground in the middle of the image."""
        flight, middle = self.domain.flight, self.margin + self.pixels * self.pixel / 2
        altitude = self.landscape.ground(middle, middle)
        return f"{flight.date.isoformat()} {flight.time} {flight.camera} {altitude:.1f}"


def _write_image(folder: Path, ground: _Ground) -> None:
    """Write image and truth, block by block in the order of the files."""
    import rasterio
    from rasterio.windows import Window

    west, north = ground.origin[0] + ground.margin, ground.origin[1] - ground.margin
    profile: dict[str, Any] = {
        "driver": "GTiff", "dtype": "uint8", "width": ground.pixels, "height": ground.pixels,
        "crs": "EPSG:2154", "tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK,
        "transform": rasterio.Affine(ground.pixel, 0, west, 0, -ground.pixel, north),
        "compress": "deflate", "bigtiff": "if_safer",
    }  # fmt: skip
    files = {"image": len(AERIAL_BANDS), "truth": 1}
    image, truth = (
        rasterio.open(folder / f"{name}.tif", "w", count=count, interleave="pixel", **profile)
        for name, count in files.items()
    )
    with image, truth:
        image.descriptions = AERIAL_BANDS
        for row in range(0, ground.pixels, _BLOCK):
            for column in range(0, ground.pixels, _BLOCK):
                pixels, classes = _block(ground, row, column)
                height, width = (min(_BLOCK, ground.pixels - at) for at in (row, column))
                window = Window(column, row, width, height)
                image.write(pixels[:, :height, :width], window=window)
                truth.write(classes[:height, :width], 1, window=window)


class _Noise:
    """White noise that goes on from block to block: the same in each, and periodic.

    Args:
        seed: Of the scene.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._draws = itertools.count()

    def standard_normal(self, size: tuple[int, ...], /) -> Floats:
        """Return noise about a block's centre."""
        *bands, height, width = size
        rng = stream(self._seed, 2, 1, next(self._draws))
        noise = rng.standard_normal((*bands, _PERIOD, _PERIOD))
        rows, columns = ((np.arange(side) - side // 2) % _PERIOD for side in (height, width))
        return np.asarray(noise[..., rows[:, None], columns])


def _block(ground: _Ground, row: int, column: int) -> tuple[Pixels, Pixels]:
    """Render image and mask from a pixel on."""
    margin = 2 * math.ceil(_REACH / ground.pixel / 2)  # even: masks are in blocks of 2 x 2
    size = _BLOCK + 2 * margin
    y, x = (ground.margin + (at + _BLOCK / 2) * ground.pixel for at in (row, column))
    noise, flight = _Noise(ground.seed), ground.domain.flight
    side = size * ground.pixel
    image, mask = render_patch(noise, ground.landscape, flight, (y, x), side, size)
    inner = slice(margin, margin + _BLOCK)
    return image[:, inner, inner], mask[inner, inner]


def _write_series(folder: Path, ground: _Ground) -> None:
    """Write an acquisition after the other, named by its product."""
    import rasterio

    domain = ground.domain
    series = render_series(
        stream(ground.seed, 2, 2), ground.landscape, ground.shape, domain.year, ground.altitude,
        domain.tile,
    )  # fmt: skip
    folder.mkdir()
    west, north = ground.origin
    profile: dict[str, Any] = {
        "driver": "GTiff", "dtype": "uint16", "height": ground.shape[0], "width": ground.shape[1],
        "crs": "EPSG:2154", "transform": rasterio.Affine(_PIXEL, 0, west, 0, -_PIXEL, north),
        "tiled": True, "blockxsize": 128, "blockysize": 128, "compress": "deflate",
    }  # fmt: skip
    bands = (*SATELLITE_BANDS, "snow", "cloud")
    for frame, mask, product in zip(series.data, series.masks, series.products, strict=True):
        with rasterio.open(folder / f"{product}.tif", "w", count=len(bands), **profile) as file:
            file.descriptions = bands
            file.write(np.concatenate((frame, mask.astype(np.uint16))))
