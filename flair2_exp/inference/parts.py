"""An unfinished map: the units that are predicted, in a folder beside the file that it becomes.

    .landcover.tif.parts/manifest.json              what is predicted from what
    .landcover.tif.parts/000000-000032.npz          a unit: its blocks of each layer
    .landcover.tif.parts/000000-000032.lock         held by the process that predicts it

A unit's file appears whole. A block without data is not in it.
"""

from __future__ import annotations

import functools
import json
import logging
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flair2_exp.errors import ConfigError
from flair2_exp.files import replacing, write_text
from flair2_exp.inference.image import Box
from flair2_exp.inference.rasters import BLOCK, NODATA, Layer
from flair2_exp.inference.tiling import Axis, Unit
from flair2_exp.locking import locked

log = logging.getLogger(__name__)

_LEVEL: Final = 1
"""Of compression: a part is read once."""


@dataclass(frozen=True)
class Parts:
    """The folder of an unfinished map."""

    folder: Path

    @classmethod
    def of(cls, out: Path) -> Parts:
        """Return the folder of what becomes a file."""
        return cls(out.with_name(f".{out.name}.parts"))

    @property
    def _manifest(self) -> Path:
        return self.folder / "manifest.json"

    @property
    def exist(self) -> bool:
        """Whether a map is unfinished here."""
        return self._manifest.is_file()

    def path(self, unit: Unit) -> Path:
        """Return the file of a unit."""
        return self.folder / f"{unit.name}.npz"

    def claim(self, unit: Unit) -> Path:
        """Return the lock of a unit."""
        return self.folder / f"{unit.name}.lock"

    def has(self, unit: Unit) -> bool:
        """Return whether a unit is predicted; a file that is damaged makes room for a new one."""
        path = self.path(unit)
        if path.is_file() and not zipfile.is_zipfile(path):
            log.warning("%s is damaged; it is predicted again.", path)
            path.unlink(missing_ok=True)
        return path.is_file()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder for this process; it is made where it is missing, removed while empty.

        Raises:
            ConfigError: Another process predicts the same file, or the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot write to {self.folder.parent}: {error.strerror}.\n"
                "Name a file in another folder."
            ) from None
        with locked(self.folder, "name another file"):
            try:
                yield
            finally:
                if not any(self.folder.glob("*.npz")):
                    self.remove()

    def settle(self, made_from: Mapping[str, Any], division: Sequence[int], *, afresh: bool) -> Any:
        """Keep the parts that are there, or start a new map; return the division into units.

        Args:
            made_from: All that decides the map's pixels, as plain values.
            division: Into units, of a new map.
            afresh: Whether parts of another map are removed.

        Raises:
            ConfigError: There are parts of another map, and they are to be kept.
        """
        made_from = json.loads(json.dumps(made_from))
        earlier = self._earlier()
        if earlier is not None and earlier["made_from"] == made_from:
            return earlier["division"]
        if earlier is not None and not afresh:
            old = earlier["made_from"]
            differ = [key for key in {**old, **made_from} if old.get(key) != made_from.get(key)]
            raise ConfigError(
                f"{self.folder} holds an unfinished map made otherwise ({', '.join(differ)}).\n"
                "Finish it with the command that began it, or remove it with --overwrite."
            )
        if earlier is not None:
            log.warning("%s: parts of another map are removed", self.folder)
        self._clear()
        manifest = {"made_from": made_from, "division": list(division)}
        write_text(self._manifest, json.dumps(manifest, indent=2))
        return list(division)

    def _earlier(self) -> Any:
        try:
            return json.loads(self._manifest.read_text("utf-8"))
        except (OSError, ValueError):
            return None

    def _clear(self) -> None:
        """Remove what is in the folder, but for the lock that this process holds."""
        self._manifest.unlink(missing_ok=True)
        for pattern in ("*.npz", "[0-9]*.lock", ".*.npz.*"):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder; the manifest goes first, so that a rest is not taken for a map."""
        self._manifest.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def write_part(
    path: Path, strips: Iterable[NDArray[np.uint8]], layers: Sequence[Layer], box: Box, within: Box
) -> None:
    """Write a unit in one step.

    Args:
        path: The file.
        strips: (bands, h, w) of all layers, from top to bottom; together they fill `box`.
        layers: Whose bands they are.
        box: The unit's pixels in the image.
        within: The map's, from whose first pixel blocks are counted.

    Raises:
        OSError: It cannot be written.
    """
    with replacing(path) as fresh, zipfile.ZipFile(fresh, "w", zipfile.ZIP_DEFLATED,
                                                   compresslevel=_LEVEL) as archive:  # fmt: skip
        for row, pixels in _block_rows(strips, box[1] - within[1]):
            for layer, bands in zip(layers, _by_layer(pixels, layers), strict=True):
                for column, start, stop in _pieces(box[0] - within[0], box[2] - within[0]):
                    _store(archive, f"{layer.kind}-{row}-{column}", bands[:, :, start:stop])


def _store(archive: zipfile.ZipFile, name: str, values: NDArray[np.uint8]) -> None:
    if not (values != NODATA).any():
        return
    with archive.open(f"{name}.npy", mode="w") as member:
        np.lib.format.write_array(member, np.ascontiguousarray(values), allow_pickle=False)


def _by_layer(pixels: NDArray[np.uint8], layers: Sequence[Layer]) -> list[NDArray[np.uint8]]:
    ends = np.cumsum([each.bands for each in layers])[:-1]
    return np.split(pixels, ends)


def _block_rows(
    strips: Iterable[NDArray[np.uint8]], top: int
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield strips cut at the rows of blocks, each with its row of blocks."""
    waiting: list[NDArray[np.uint8]] = []
    for strip in strips:
        while strip.shape[1]:
            height = sum(each.shape[1] for each in waiting)
            room = BLOCK - (top + height) % BLOCK
            waiting.append(strip[:, :room])
            strip = strip[:, room:]
            if waiting[-1].shape[1] == room:
                yield top // BLOCK, np.concatenate(waiting, axis=1)
                top, waiting = top + height + room, []
    if waiting:
        yield top // BLOCK, np.concatenate(waiting, axis=1)


def _pieces(start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Yield the columns of blocks within pixels, each with its first and last place from start."""
    for block in range(start // BLOCK, (stop - 1) // BLOCK + 1):
        first, last = max(start, block * BLOCK), min(stop, (block + 1) * BLOCK)
        yield block, first - start, last - start


def blocks_of(
    parts: Parts, layer: Layer, rows: Axis, columns: Axis, division: Sequence[int], within: Box
) -> Iterator[tuple[int, int, NDArray[np.uint8]]]:
    """Yield a layer's blocks that hold data, (row, column, (bands, h, w)), in row-major order.

    Args:
        parts: All units that hold data.
        layer: The layer.
        rows: Of the tiling.
        columns: Of the tiling.
        division: Into units, tiles along each axis.
        within: The map's pixels in the image.
    """
    opened = functools.lru_cache(maxsize=64)(_opened)
    for row, tiles_down in _blocks(rows, division[0], within[1], within[3]):
        for column, tiles_across in _blocks(columns, division[1], within[0], within[2]):
            top, left = row * BLOCK + within[1], column * BLOCK + within[0]
            height = min(BLOCK, within[3] - top)
            width = min(BLOCK, within[2] - left)
            block = np.full((layer.bands, height, width), NODATA, np.uint8)
            for down, y in tiles_down:
                for across, x in tiles_across:
                    part = opened(parts.path(Unit(down, across)))
                    name = f"{layer.kind}-{row}-{column}"
                    if part is not None and name in part:
                        _place(block, part[name], y - top, x - left)
            if (block != NODATA).any():
                yield row * BLOCK, column * BLOCK, block


def _opened(path: Path) -> Any:
    return np.load(path, allow_pickle=False) if path.is_file() else None


def _place(block: NDArray[np.uint8], piece: NDArray[np.uint8], y: int, x: int) -> None:
    """Put a unit's piece of a block, whose first pixel is given, where it belongs."""
    if y < 0 or x < 0:  # the unit begins before the block, its piece with the block
        y, x = max(0, y), max(0, x)
    block[:, y : y + piece.shape[1], x : x + piece.shape[2]] = piece


def _blocks(
    axis: Axis, step: int, start: int, stop: int
) -> Iterator[tuple[int, list[tuple[range, int]]]]:
    """Yield along an axis each block and the units that it touches, with their first pixels."""
    spans = [range(t, min(t + step, axis.count)) for t in range(0, axis.count, step)]
    edges = np.array([axis.begin(span.start) for span in spans] + [axis.size])
    for block in range(-(-(stop - start) // BLOCK)):
        first, last = start + block * BLOCK, min(stop, start + (block + 1) * BLOCK)
        units = range(
            int(np.searchsorted(edges, first, "right")) - 1, int(np.searchsorted(edges, last))
        )
        yield block, [(spans[unit], int(edges[unit])) for unit in units]
