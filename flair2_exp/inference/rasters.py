"""Predictions as GeoTIFFs: classes in the data set's values and colours, probabilities, confidence.

A raster is written block by block and appears whole. The same blocks and tags give the same bytes.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.windows import Window

from flair2_exp import __version__
from flair2_exp.data.grids import Grid, quiet
from flair2_exp.errors import ConfigError, nearest
from flair2_exp.files import nearest_existing, replacing, unusable
from flair2_exp.nomenclature import Nomenclature
from flair2_exp.tracking.scrub import scrub

if TYPE_CHECKING:
    from flair2_exp.inference.predictor import Predictor

NODATA: Final = 255
"""Where nothing is predicted, in every kind of raster and in blocks of class indices."""
BLOCK: Final = 512
"""Pixels on a side of what is compressed, and read, at once."""
PROBABILITY_STEPS: Final = 250
"""A probability p is stored as round(p · 250), and read by GDAL with the scale 1/250: an error of
0.002 at most in one byte, below 255 for nodata, and steps that are short decimals."""

Kind = Literal["classes", "probabilities", "confidence"]
Pixels = NDArray[np.uint8]
Blocks = Iterable[tuple[int, int, Pixels]]
"""Row offset, column offset and (bands, h, w) of parts of a raster."""

MADE_FROM: Final = "FLAIR2_MADE_FROM"
"""The tag with the digest of what decides the pixels: networks, weights, test-time augmentation."""


@dataclass(frozen=True)
class Layer:
    """What one output file holds.

    Raises:
        ConfigError: A chosen class does not exist; or a class's value in the masks is not a byte's.
    """

    kind: Kind
    nomenclature: Nomenclature
    chosen: tuple[str, ...] = ()
    """Class names of the bands, for probabilities."""

    def __post_init__(self) -> None:
        names = self.nomenclature.names
        for name in self.chosen:
            if name not in names:
                raise ConfigError(f"class {name!r}: {nearest(name, names)}")
        if self.kind == "classes":
            _require_bytes(self.nomenclature)

    @property
    def bands(self) -> int:
        """Bands of the file."""
        return len(self.chosen) if self.kind == "probabilities" else 1

    @property
    def positions(self) -> list[int]:
        """Class indices of the bands, for probabilities."""
        return [self.nomenclature.names.index(name) for name in self.chosen]

    @property
    def descriptions(self) -> tuple[str, ...]:
        """Of the bands."""
        names = {"classes": ("land cover",), "confidence": ("confidence",)}
        return names.get(self.kind, self.chosen)

    @property
    def values(self) -> Pixels:
        """(256,) what a block's numbers become in the file."""
        table: Pixels = np.arange(NODATA + 1, dtype=np.uint8)
        if self.kind == "classes":
            table[:] = NODATA
            for index, each in enumerate(self.nomenclature.classes):
                table[index] = each.value
        return table

    @property
    def indices(self) -> Pixels:
        """(256,) what a file's numbers are in a block: the reverse of `values`."""
        table: Pixels = np.full(NODATA + 1, NODATA, dtype=np.uint8)
        values = self.values
        known = values != NODATA
        table[values[known]] = np.flatnonzero(known)
        return table

    def pixels(self, classes: Pixels, probabilities: NDArray[np.float32]) -> Pixels:
        """Return the layer's block, (bands, H, W), of a prediction.

        Args:
            classes: (H, W) indices.
            probabilities: (C, H, W) in 0..1.
        """
        if self.kind == "classes":
            return classes[np.newaxis]
        if self.kind == "confidence":
            return quantised(probabilities.max(axis=0, keepdims=True))
        return quantised(probabilities[self.positions])


def quantised(probabilities: NDArray[np.float32]) -> Pixels:
    """Return probabilities of 0..1 as files hold them, in steps of 1/250."""
    steps: Pixels = np.rint(probabilities * np.float32(PROBABILITY_STEPS)).astype(np.uint8)
    return steps


def _require_bytes(nomenclature: Nomenclature) -> None:
    for each in nomenclature.classes:
        if not 0 <= each.value < NODATA:
            raise ConfigError(
                f"class {each.name!r} has the value {each.value} in the masks: a map holds values "
                f"of 0 to {NODATA - 1}, and {NODATA} where nothing is predicted.\nGive the classes "
                "such values in the data set's table of classes, and train again."
            )


def layers_of(
    nomenclature: Nomenclature, probabilities: tuple[str, ...] = (), *, confidence: bool = False
) -> list[Layer]:
    """Return the layers of a prediction: classes, and what is asked for beside them.

    Raises:
        ConfigError: As by `Layer`.
    """
    layers = [Layer("classes", nomenclature)]
    if probabilities:
        layers.append(Layer("probabilities", nomenclature, probabilities))
    if confidence:
        layers.append(Layer("confidence", nomenclature))
    return layers


def layer_path(out: Path, kind: str) -> Path:
    """Return the file of a kind of layer: landcover.tif, landcover.probabilities.tif and so on."""
    return out if kind == "classes" else out.with_name(f"{out.stem}.{kind}{out.suffix}")


def require_free(paths: Iterable[Path], overwrite: bool) -> None:
    """Refuse files that are there already or could not be written; make nothing.

    Raises:
        ConfigError: One is there and `overwrite` is False; or its folder cannot be written.
    """
    for path in paths:
        require_writable(path)
        if path.is_dir():
            raise ConfigError(f"{path} is a folder.\nName a file.")
        if path.exists() and not overwrite:
            raise ConfigError(f"{path} is there already.\nName another file, or add --overwrite.")


def require_writable(path: Path) -> None:
    """Refuse a file or folder that could not be made; make nothing.

    Raises:
        ConfigError: It could not; the message names what is in the way.
    """
    reason = unusable(str(path.absolute()))
    if reason:
        raise ConfigError(f"{str(path)[:100]}: {reason}.\nName another place.")
    folder = nearest_existing(path.absolute() if path.is_dir() else path.absolute().parent)
    if not folder.is_dir():
        reason = "not a folder"
    elif os.statvfs(folder).f_flag & os.ST_RDONLY or not os.access(folder, os.W_OK | os.X_OK):
        reason = "read-only"
    if reason:
        raise ConfigError(f"cannot write {path}: {folder} is {reason}.\nName another place.")


def provenance(predictor: Predictor, command: str) -> dict[str, str]:
    """Return the tags of rasters that a predictor makes.

    Args:
        predictor: Its run or runs; several are separated by commas.
        command: What made the raster; empty where nobody knows. Credentials in it are masked.
    """
    stored = [member.stored for member in predictor.members]
    runs = [each.record.run_id if each.record and each.record.run_id else each.name
            for each in stored]  # fmt: skip
    identities = [each.record.identity if each.record else "" for each in stored]
    classes = {str(each.value): each.name for each in predictor.nomenclature.classes}
    return {
        "FLAIR2_RUN": ", ".join(runs),
        "FLAIR2_IDENTITY": ", ".join(identities),
        MADE_FROM: predictor.made_from,
        "FLAIR2_COMMAND": scrub(command),
        "FLAIR2_VERSION": __version__,
        "FLAIR2_CLASSES": json.dumps(classes, ensure_ascii=False),
        "FLAIR2_TTA": predictor.symmetries,
    }


def write_layer(
    path: Path,
    grid: Grid,
    layer: Layer,
    blocks: Blocks,
    tags: Mapping[str, str],
    *,
    cog: bool = False,
) -> None:
    """Write a layer as a GeoTIFF that appears whole; an earlier file of the name is replaced.

    Classes have the values of the data set's masks, their colours, and a tag of their names;
    probabilities and confidence are `quantised`, with their scale. What is nodata, and what no
    block covers, takes no room.

    Args:
        path: The file.
        grid: Its pixels on the ground.
        layer: What it holds.
        blocks: Offsets that are multiples of `BLOCK`, in row-major order, each with (bands, h, w)
            up to the next block or the raster's end. Of classes they hold indices.
        tags: Of the file.
        cog: Whether it is a cloud-optimised GeoTIFF, with overviews: of classes the nearest
            pixel's, else means.

    Raises:
        OSError: It cannot be written, as on a full disk; nothing is left.
    """
    with replacing(path) as fresh:
        if not cog:
            _write(fresh, grid, layer, blocks, tags)
            return
        plain = fresh.with_name(f"{fresh.name}.plain")
        try:
            _write(plain, grid, layer, blocks, tags)
            with system_errors(fresh, room=2 * plain.stat().st_size):
                _copy_optimised(plain, fresh, layer)
        finally:
            plain.unlink(missing_ok=True)


def is_written(path: Path, layer: Layer, tags: Mapping[str, str]) -> bool:
    """Return whether a file is whole, and this layer made by the same networks in the same way."""
    if not path.is_file():
        return False
    try:
        with quiet(), rasterio.open(path, driver="GTiff") as file:
            file.read()
            same = file.tags().get(MADE_FROM) == tags[MADE_FROM]
            return bool(same and file.descriptions == layer.descriptions)
    except RasterioError:
        return False


def _write(path: Path, grid: Grid, layer: Layer, blocks: Blocks, tags: Mapping[str, str]) -> None:
    side = min(BLOCK, -(-max(grid.width, grid.height) // 16) * 16)  # a multiple of 16
    values = layer.values
    with (
        system_errors(path),
        rasterio.open(
            path,
            "w",
            driver="GTiff",
            width=grid.width,
            height=grid.height,
            count=layer.bands,
            dtype="uint8",
            crs=grid.crs,
            transform=grid.transform,
            nodata=NODATA,
            tiled=True,
            blockxsize=side,
            blockysize=side,
            compress="DEFLATE",
            # Differences of neighbouring pixels help where values are quantities.
            predictor=1 if layer.kind == "classes" else 2,
            # All bands of a block are written at once: else the order in the file would depend on
            # when GDAL's cache is full.
            interleave="pixel",
            bigtiff="IF_SAFER",
            sparse_ok=True,
        ) as file,
    ):
        _describe(file, layer, tags)
        for row, column, pixels in blocks:
            window = Window(column, row, pixels.shape[2], pixels.shape[1])
            file.write(values[pixels], window=window)


def _describe(file: Any, layer: Layer, tags: Mapping[str, str]) -> None:
    """Name bands and classes; before the first pixel, so that it stands at the file's start."""
    file.update_tags(**tags)
    if layer.kind == "classes":
        colours = {value: (0, 0, 0, 0) for value in range(NODATA + 1)}
        for each in layer.nomenclature.classes:
            colours[each.value] = (*bytes.fromhex(each.colour[1:]), 255)
        file.write_colormap(1, colours)
        named = {f"CLASS_{each.value}": each.name for each in layer.nomenclature.classes}
        file.update_tags(1, **named)
    else:
        file.scales = (1 / PROBABILITY_STEPS,) * layer.bands
    for band, name in enumerate(layer.descriptions, start=1):
        file.set_band_description(band, name)


def _copy_optimised(plain: Path, fresh: Path, layer: Layer) -> None:
    options = {
        "blocksize": BLOCK,
        "compress": "DEFLATE",
        "predictor": "NO" if layer.kind == "classes" else "YES",
        "overview_resampling": "NEAREST" if layer.kind == "classes" else "AVERAGE",
        "bigtiff": "IF_SAFER",
        "sparse_ok": "YES",
    }
    try:
        rasterio.shutil.copy(plain, fresh, driver="COG", **options)
    except Exception as error:  # a class that rasterio keeps to itself
        raise RasterioError(str(error)) from error


@contextmanager
def system_errors(path: Path, room: int = 2**20) -> Iterator[None]:
    """Raise the system's error where GDAL could not write a file: its own has no number.

    Args:
        path: The file, within `files.replacing`.
        room: Bytes that it lacked at most, where GDAL removes what it has written of it.

    Raises:
        OSError: The file could not be made, or could not grow.
    """
    try:
        with quiet():
            yield
    except RasterioError as error:
        raise _system_error(path, room) or error from error


def _system_error(path: Path, room: int) -> OSError | None:
    """Return why a file cannot grow; None where it can."""
    try:
        with tempfile.TemporaryFile(dir=path.parent) as probe:
            length = path.stat().st_size if path.exists() else 0
            os.posix_fallocate(probe.fileno(), length, room)
    except OSError as error:
        return OSError(error.errno, error.strerror, str(path))
    return None
