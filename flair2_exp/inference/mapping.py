"""Land cover of a raster of any size, by windows, in memory that does not grow with it.

    predictor = Predictor.from_run("outputs/demo/TIME")
    map_raster(predictor, [Path("ortho.tif")], Path("landcover.tif"))

The raster is cut into tiles (`tiling`) and these into units, rectangles of some hundreds of tiles.
A unit is predicted row by row (`joining`) and kept in a file (`parts`); a map that was stopped goes
on with the units that are missing, and several processes each take the next free one. The same
inputs give the same bytes, whichever way the work was divided.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from flair2_exp.errors import UsageError
from flair2_exp.inference.image import raster_settings
from flair2_exp.inference.parts import Parts, blocks_of
from flair2_exp.inference.planning import Plan
from flair2_exp.inference.rasters import (
    NODATA,
    Layer,
    layer_path,
    provenance,
    require_free,
    write_layer,
)
from flair2_exp.inference.tiling import Join
from flair2_exp.inference.working import Work, devices_beside
from flair2_exp.progress import Progress
from flair2_exp.shortage import in_words

if TYPE_CHECKING:
    from flair2_exp.inference.predictor import Predictor
    from flair2_exp.inference.surroundings import Flight


@dataclass(frozen=True, kw_only=True)
class MapOptions:
    """How a raster is mapped."""

    overlap: int | None = None
    """Pixels shared by neighbouring tiles; None: an eighth of the patch size."""
    join: Join = "blend"
    """`blend` mixes neighbouring tiles smoothly; `crop` takes each pixel from the nearest one."""
    bands: tuple[str, ...] | None = None
    """Names of the input files' bands in order, where the files do not describe them."""
    resample: bool = False
    """Resample to the run's resolution."""
    area: Path | None = None
    """Polygons (GeoJSON, GeoPackage, Shapefile) that are mapped; outside is nodata."""
    bounds: tuple[float, float, float, float] | None = None
    """West, south, east, north in the image's CRS."""
    nodata: float | None = None
    """Of the input; None: the files' own values and masks."""
    series: Path | None = None
    """Folder of Sentinel-2 acquisitions (see `series`), for networks that read them."""
    flight: Flight | None = None
    """That took the image, for networks that read metadata."""
    probabilities: tuple[str, ...] = ()
    """Names of classes whose probabilities are written, too."""
    confidence: bool = False
    """Write the probability of the predicted class, too."""
    cog: bool = False
    """Write cloud-optimised GeoTIFFs."""
    batch_size: int = 4
    """Tiles predicted at once."""
    devices: int = 1
    """GPUs, or processes where there is none."""
    overwrite: bool = False
    """Replace files that are there, and parts of another unfinished map."""

    def __post_init__(self) -> None:
        for name, value in (("batch_size", self.batch_size), ("devices", self.devices)):
            if value < 1:
                raise UsageError(f"{name} {value}: expected 1 or more.")
        if self.join not in ("blend", "crop"):
            raise UsageError(f"join {self.join!r}: expected blend or crop.")


@dataclass(frozen=True)
class MapSummary:
    """What was mapped."""

    files: dict[str, Path]
    """By kind: `classes`, `probabilities`, `confidence`."""
    width: int
    """Of the map, in pixels."""
    height: int
    predicted: int
    """Tiles of this call."""
    skipped: int
    """Tiles of this call without data."""
    resumed: int
    """Units of an earlier call that were taken over."""
    pixels: dict[str, int]
    """How many each class has, by name, and `nodata`."""


def map_raster(
    predictor: Predictor,
    images: Sequence[Path],
    out: Path,
    options: MapOptions = MapOptions(),
    *,
    command: str = "",
    progress: Progress | None = None,
) -> MapSummary:
    """Write the land cover of a raster; beside it, as asked for, probabilities and confidence.

    A call that is stopped leaves what it has predicted in `.NAME.parts` beside the file; the same
    call resumes from there, and ends with the same bytes. With several devices, which are processes
    started anew, a script needs its `if __name__ == "__main__":`.

    Args:
        predictor: The network.
        images: One raster, or several of a mosaic, later ones on top.
        out: The GeoTIFF of classes.
        options: How.
        command: What makes the map, for its tags and for messages.
        progress: Is given how many tiles are done, and of how many.

    Raises:
        FlairError: The images are not what the network reads, files are in the way, or the machine
            ran out of something; the message says what to do.
    """
    with raster_settings():
        plan = Plan(predictor, images, out, options)
        paths = {str(layer.kind): layer_path(out, layer.kind) for layer in plan.layers}
        _require_outputs(list(paths.values()), images, plan.parts, options.overwrite)
        devices_beside(predictor.device, options.devices)
        again = (
            f"What is predicted is safe in {plan.parts.folder}; this resumes: "
            f"{command or 'the same call'}"
        )
        with plan.parts.held(), in_words(out.parent, lambda: again):
            division = plan.parts.settle(plan.made_from(), plan.division, afresh=options.overwrite)
            plan.division = (division[0], division[1])
            work = Work(plan, progress)
            work.run()
            pixels = _write_layers(plan, paths, provenance(predictor, command))
            plan.parts.remove()
    left, top, right, bottom = plan.area.box
    return MapSummary(
        paths, right - left, bottom - top, work.predicted, work.skipped, work.resumed, pixels
    )


def _require_outputs(
    paths: Sequence[Path], images: Sequence[Path], parts: Parts, overwrite: bool
) -> None:
    """Refuse to write over a file; a map that is unfinished may replace what it began to.

    Raises:
        FlairError: The message names the file.
    """
    for path in paths:
        for image in images:
            if path.exists() and image.exists() and path.samefile(image):
                raise UsageError(
                    f"{path} is an image to be mapped.\nName another file for the map."
                )
    require_free(paths, overwrite or parts.exist)


def _write_layers(plan: Plan, paths: dict[str, Path], tags: dict[str, str]) -> dict[str, int]:
    """Write the layers from the parts; return how many pixels each class has."""
    left, top, right, bottom = plan.area.box
    grid = plan.image.grid.part(Window(left, top, right - left, bottom - top))
    counts = np.zeros(NODATA + 1, np.int64)

    def blocks(layer: Layer) -> Iterator[tuple[int, int, NDArray[np.uint8]]]:
        for row, column, values in blocks_of(
            plan.parts, layer, plan.rows, plan.columns, plan.division, plan.area.box
        ):
            if layer.kind == "classes":
                counts[:] += np.bincount(values.ravel(), minlength=len(counts))
            yield row, column, values

    for layer in plan.layers:
        write_layer(paths[layer.kind], grid, layer, blocks(layer), tags, cog=plan.options.cog)
    names = plan.predictor.nomenclature.names
    pixels = {name: n for name, n in zip(names, counts.tolist(), strict=False)}
    return {**pixels, "nodata": grid.width * grid.height - sum(pixels.values())}
