"""The patches of a part of the run's own data as GeoTIFFs, and their areas as mosaics.

    FOLDER/D036_2020/Z17_UA/PRED_084558.tif
    FOLDER/mosaics/D036_2020_Z17_UA.tif

A prediction that was interrupted resumes: files that are there and were made by the same networks
in the same way are kept.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rasterio import Affine

from flair2_exp import locking
from flair2_exp.data.grids import Grid
from flair2_exp.data.source import DataSource
from flair2_exp.errors import ConfigError, DataError
from flair2_exp.inference.legend import write_legend, write_style
from flair2_exp.inference.mosaics import Mosaic, OffGridError
from flair2_exp.inference.rasters import (
    BLOCK,
    MADE_FROM,
    Blocks,
    Layer,
    Pixels,
    is_written,
    layer_path,
    layers_of,
    provenance,
    require_writable,
    write_layer,
)
from flair2_exp.inference.reading import positions_of
from flair2_exp.progress import Progress
from flair2_exp.values import digest

if TYPE_CHECKING:
    from flair2_exp.inference.patches import SplitPatch
    from flair2_exp.inference.predictor import Predictor

log = logging.getLogger(__name__)

_PREFIX: Final = "PRED_"
_LEFT: Final = re.compile(r"\..+\.[0-9a-f]{8}(\..+)?")
"""Names of what a killed process leaves of a file (`files.replacing`)."""


@dataclass(frozen=True)
class SplitSummary:
    """What `predict_split` made."""

    folder: Path
    patches: int
    """Of the part."""
    predicted: int
    """Now; the others were there."""
    seconds: float
    """That the network and reading took for those predicted now."""
    mosaics: int
    without_mosaic: Mapping[str, str] = field(default_factory=dict)
    """Why an area has none, by its name."""


def predict_split(
    predictor: Predictor,
    part: str,
    folder: Path,
    *,
    probabilities: tuple[str, ...] = (),
    confidence: bool = False,
    mosaics: bool = True,
    workers: int = 0,
    batch_size: int = 1,
    overwrite: bool = False,
    command: str = "",
    progress: Progress | None = None,
) -> SplitSummary:
    """Predict a part of the run's own data as GeoTIFFs with the images' places on the ground.

    Args:
        predictor: Of a run, or of several on the same data.
        part: `train`, `validation` or `test`.
        folder: Takes the files; equal bytes however often the command was interrupted.
        probabilities: Names of classes whose probabilities are written, too.
        confidence: Whether the probability of the predicted class is written, too.
        mosaics: Whether each area is written as one raster, too, where its patches share a grid.
        workers: Processes that read.
        batch_size: Patches at once.
        overwrite: Whether files of other networks are replaced.
        command: For the files' tags.
        progress: Is called after each patch.

    Raises:
        UsageError: There is no such part.
        ConfigError: Another process writes there; or files of other networks are there.
        DataError: A patch cannot be read.
        OSError: A file cannot be written; what was written stays for the next start.
    """
    layers = layers_of(predictor.nomenclature, probabilities, confidence=confidence)
    positions, source = positions_of(predictor, part), predictor.data[0].source
    require_writable(folder)
    with locking.locked(folder, "name another folder"):
        remove_leftovers(folder)
        tags = provenance(predictor, command)
        paths = _paths(folder, source, positions)
        missing = _missing(paths, layers, tags, overwrite)

        def write(patch: SplitPatch) -> None:
            grid = source.grid(patch.patch)
            _write(paths[patch.patch], grid, layers, patch, tags)

        seconds = predict_missing(
            predictor, part, missing, write, total=len(positions), workers=workers,
            batch_size=batch_size, progress=progress,
        )  # fmt: skip
        write_legend(folder / "landcover.tif", predictor.nomenclature)
        of_areas = _write_mosaics(folder, source, paths, layers, tags) if mosaics else (0, {})
    return SplitSummary(folder, len(positions), len(missing), seconds, *of_areas)


def prediction_name(patch_id: str) -> str:
    """Return the name of a patch's file, as PRED_061946.tif of IMG_061946; never a path."""
    return f"{_PREFIX}{_plain(patch_id.removeprefix('IMG_'))}.tif"


def _plain(text: str) -> str:
    return re.sub(r"[^\w.\-]", "_", text).lstrip(".") or "_"


def predict_missing(
    predictor: Predictor,
    part: str,
    missing: Sequence[int],
    write: Callable[[SplitPatch], None],
    *,
    total: int,
    workers: int = 0,
    batch_size: int = 1,
    progress: Progress | None = None,
) -> float:
    """Predict the patches that are still missing and write each.

    Returns:
        The seconds that reading and the network took.

    Raises:
        DataError: A patch cannot be read.
    """
    if not missing:
        return 0.0
    seconds, left = 0.0, set(missing)
    start = time.perf_counter()
    for patch in predictor.split(part, batch_size=batch_size, workers=workers, only=missing):
        seconds += time.perf_counter() - start
        write(patch)
        left.discard(patch.patch)
        if progress is not None:
            progress(total - len(left), total)
        start = time.perf_counter()
    if left:
        names = [str(predictor.data[0].index.ids[each]) for each in sorted(left)[:3]]
        raise DataError(
            f"{len(left)} patches cannot be read and were skipped (dataset.on_damaged): "
            f"{', '.join(names)}.\nReplace their files, and give the same command again."
        )
    return seconds


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left of files below a folder that this process holds."""
    for path in folder.rglob(".*"):
        if _LEFT.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def _paths(folder: Path, source: DataSource, positions: Sequence[int]) -> dict[int, Path]:
    """Return the class raster of each patch, by its position.

    Raises:
        DataError: Two patches of an area would have one file.
    """
    index = source.index
    paths: dict[int, Path] = {}
    for position in positions:
        area = str(index.area_names[index.area[position]])
        place = folder.joinpath(*map(_plain, area.split("/")))
        paths[position] = place / prediction_name(str(index.ids[position]))
    if len(set(paths.values())) < len(paths):
        raise DataError(
            "two patches of an area would have a file of the same name.\n"
            "Give the patches ids that differ in letters, digits, '-' or '.'."
        )
    return paths


def _missing(
    paths: Mapping[int, Path], layers: Sequence[Layer], tags: Mapping[str, str], overwrite: bool
) -> list[int]:
    """Return the positions of patches that lack a file.

    Raises:
        ConfigError: A file is there that something else made, and is not to be replaced.
    """
    missing = []
    for position, path in paths.items():
        files = [(layer_path(path, layer.kind), layer) for layer in layers]
        lacking = [file for file, layer in files if not is_written(file, layer, tags)]
        foreign = [file for file in lacking if file.exists()]
        if foreign and not overwrite:
            raise ConfigError(
                f"{foreign[0]} is there already, damaged or made by another run or with other "
                "options.\nName another folder, or add --overwrite."
            )
        if lacking:
            missing.append(position)
    return missing


def _write(
    path: Path,
    grid: Grid | None,
    layers: Sequence[Layer],
    patch: SplitPatch,
    tags: Mapping[str, str],
) -> None:
    classes = patch.prediction.classes
    nowhere = Grid(classes.shape[1], classes.shape[0], Affine.identity())
    for layer in layers:
        pixels = layer.pixels(classes, patch.prediction.probabilities)
        write_layer(layer_path(path, layer.kind), grid or nowhere, layer, _cut(pixels), tags)


def _cut(pixels: Pixels) -> Blocks:
    """Yield a patch's pixels in blocks."""
    for row in range(0, pixels.shape[1], BLOCK):
        for column in range(0, pixels.shape[2], BLOCK):
            yield row, column, pixels[:, row : row + BLOCK, column : column + BLOCK]


def _write_mosaics(
    folder: Path,
    source: DataSource,
    paths: Mapping[int, Path],
    layers: Sequence[Layer],
    tags: Mapping[str, str],
) -> tuple[int, dict[str, str]]:
    """Write each area's mosaics; return of how many areas, and why others have none."""
    index = source.index
    areas: dict[str, list[int]] = {}
    for position in paths:
        areas.setdefault(str(index.area_names[index.area[position]]), []).append(position)
    without = {}
    for area, members in areas.items():
        try:
            mosaic = Mosaic.of([source.grid(each) for each in members])
        except OffGridError as error:
            without[area] = str(error)
            continue
        files = [paths[each] for each in members]
        names = [file.name for file in files]
        own = {**tags, MADE_FROM: digest({"patches": names, MADE_FROM: tags[MADE_FROM]})}
        for layer in layers:
            out = layer_path(folder / "mosaics" / f"{_plain(area)}.tif", layer.kind)
            if not is_written(out, layer, own):
                mosaic.write(out, [layer_path(file, layer.kind) for file in files], layer, own)
            if layer.kind == "classes":
                write_style(out.with_suffix(".qml"), layer.nomenclature)
    if without:
        first, reason = next(iter(without.items()))
        log.warning("%d areas have no mosaic, as %s: %s", len(without), first, reason)
    return len(areas) - len(without), without
