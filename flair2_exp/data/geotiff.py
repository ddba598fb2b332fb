"""A folder of GeoTIFF pairs as a data source: images, masks, a table of patches and one of classes.

    patches.csv     image,mask,area,part[,domain][,id]     paths relative to dataset.root
    classes.csv     value,name,colour[,scored]             colour #rrggbb; scored true or false

    flair2-exp dataset=geotiff dataset.root=/data/mine model=unet

Any number of bands, classes and pixels on a side; all patches alike.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from flair2_exp.config.data import DataGroups
from flair2_exp.data.source import PARTS, DataSource, Label, Patches, Sample
from flair2_exp.errors import DamagedPatchError, DataError, nearest
from flair2_exp.nomenclature import OTHER, LandCover, Nomenclature

if TYPE_CHECKING:
    from flair2_exp.data.check.findings import Finding
    from flair2_exp.data.grids import Grid

_REQUIRED: Final = ("image", "mask", "area")
_NO_CLASS: Final = 255
"""Stands in the table of mask values for those of no class."""
_VALUES: Final = 65_536
"""Masks hold whole numbers below this."""


@dataclass
class ClassRow:
    """One class, as `classes` lists it."""

    value: int
    name: str
    colour: str
    scored: bool = True


class GeoTiffSource(DataSource):
    """GeoTIFF pairs below one folder, listed in a CSV.

    Args:
        groups: Of the data.
        root: The folder.
        patches: The CSV of patches in it: a line for each with `image`, `mask`, `area` (the unit of
            resampling), and, as far as known, `part` (train, validation, test), `domain` (a group
            of areas) and `id` (else the image's path).
        classes: The CSV or YAML file of classes in it, or the classes themselves. Those that are
            not scored are trained like the others (see `loss.class_weights`).
        bands: Names of the images' bands; None takes the files' band descriptions, else band_1, ….
        ignored: Mask values that are not classes, such as nodata: they become "other", which is not
            scored, and which the losses' files leave out.
        divisor: What images are divided by; None is 255 for uint8, 65535 for uint16, else 1.

    Raises:
        DataError: A table lacks something or contradicts itself; the message names file and line.
    """

    def __init__(
        self,
        groups: DataGroups,
        root: str | None,
        patches: str = "patches.csv",
        classes: str | list[ClassRow] = "classes.csv",
        bands: tuple[str, ...] | None = None,
        ignored: tuple[int, ...] = (),
        divisor: float | None = None,
    ) -> None:
        if root is None or not Path(root).expanduser().is_dir():
            raise DataError(
                f"dataset.root={root} is not a folder.\nSet it to the folder of {patches}, the "
                "table of the GeoTIFF pairs."
            )
        self.root = Path(root).expanduser()
        self._stops = groups.dataset.on_damaged == "stop"
        rows = _read_rows(self.root / patches, _REQUIRED)
        self._images = [row["image"] for row in rows]
        self._masks = [row["mask"] for row in rows]
        self.index = _index(rows, self.root / patches)
        listed = _classes(self.root / classes) if isinstance(classes, str) else classes
        self.nomenclature, self._table = _nomenclature(listed, ignored, classes)
        self.divisor = divisor
        header = _Header.of(self.root / self._images[0])
        if header.height != header.width:
            raise DataError(
                f"{self.root / self._images[0]} has {header.height} x {header.width} pixels: "
                "patches must be square."
            )
        self.patch_size = header.height
        place = self.grid(0)
        projected = place.crs is not None and place.crs.is_projected
        self.resolution = place.metres[0] if projected else None
        self.image_type = np.dtype(header.kind)
        self.bands = header.names if bands is None else bands
        if len(self.bands) != header.count or len(set(self.bands)) < header.count:
            raise DataError(
                f"dataset.options.bands: {len(self.bands)} names, and "
                f"{self.root / self._images[0]} has {header.count} bands.\nName each band once, or "
                "omit the option for the files' own descriptions."
            )

    def grid(self, patch: int) -> Grid:
        """Return where a patch's pixels lie, by its image."""
        from flair2_exp.data.grids import Grid

        return Grid.of(self.root / self._images[patch])

    def paths(self, patch: int) -> Sequence[Path]:
        """Return the patch's image and mask."""
        return self.root / self._images[patch], self.root / self._masks[patch]

    def read(self, patch: int) -> Sample:
        """Read the patch's image and mask, as `DataSource.read` says."""
        image_path, mask_path = self.paths(patch)
        image = _read(image_path)
        shape = (len(self.bands), self.patch_size, self.patch_size)
        if image.shape != shape or image.dtype != self.image_type:
            raise DamagedPatchError(
                f"{image_path}: {image.shape} {image.dtype} instead of {shape} {self.image_type}, "
                "as the first image has."
            )
        if image.dtype.kind == "f" and not np.isfinite(image).all():
            raise DamagedPatchError(f"{image_path}: holds pixels that are not finite; fill them.")
        mask = _read(mask_path)
        if mask.shape != (1, *shape[1:]):
            raise DamagedPatchError(
                f"{mask_path}: {mask.shape} instead of {(1, *shape[1:])}, as its image."
            )
        return Sample(label=self._label(mask[0], mask_path), image=image)

    def _label(self, mask: NDArray[Any], path: Path) -> Label:
        """Turn a mask's values into class indices."""
        if mask.dtype.kind not in "ui" or mask.min() < 0 or mask.max() >= _VALUES:
            raise DamagedPatchError(f"{path}: {mask.dtype} values; expected 0 to {_VALUES - 1}.")
        label: Label = self._table[mask]
        if label.max(initial=0) == _NO_CLASS:
            values = ", ".join(map(str, np.unique(mask[label == _NO_CLASS])[:5].tolist()))
            raise DamagedPatchError(
                f"{path}: mask values {values} of no class: add them to dataset.options.classes, "
                f"or to dataset.options.ignored=[{values}]."
            )
        return label

    def require_sound(self) -> Sequence[Finding]:
        """Check that all files are there, with headers of one size, type and number of bands."""
        from flair2_exp.data.check.findings import Finding

        first = _Header.of(self.root / self._images[0])
        size = (first.height, first.width)
        findings = []
        for patch, name in enumerate(self.index.ids.tolist()):
            for path, is_image in zip(self.paths(patch), (True, False), strict=True):
                try:
                    header = _Header.of(path)
                except DataError as error:
                    message = str(error).removeprefix(f"{path}: ")
                    findings.append(Finding(path, name, "unreadable-raster", message))
                    continue
                wanted = (first.count, *size, first.kind) if is_image else (1, *size)
                present = (header.count, header.height, header.width, header.kind)[: len(wanted)]
                if present != wanted:
                    words = [" x ".join(map(str, each)) for each in (present, wanted)]
                    message = f"{words[0]} (bands, rows, columns) instead of {words[1]}"
                    findings.append(Finding(path, name, "other-shape", message))
        if findings and self._stops:
            shown = "; ".join(f"{each.path}: {each.message}" for each in findings[:3])
            more = f"; and {len(findings) - 3} more" if len(findings) > 3 else ""
            raise DataError(
                f"damaged data set: {shown}{more}.\n"
                "Correct the files or their lines in the table, or set dataset.on_damaged=skip."
            )
        return findings


@dataclass(frozen=True)
class _Header:
    """What is known of a raster without reading its pixels."""

    count: int
    height: int
    width: int
    kind: str
    names: tuple[str, ...]
    """Of the bands."""

    @classmethod
    def of(cls, path: Path) -> _Header:
        """Read it.

        Raises:
            DataError: The file cannot be read, or bands differ in type.
        """
        from rasterio.errors import RasterioError

        from flair2_exp.data.readers import reading

        try:
            import rasterio

            with reading(), rasterio.open(path) as file:
                described = [each or "" for each in file.descriptions]
                kinds, shape = set(file.dtypes), (file.count, file.height, file.width)
        except (RasterioError, OSError) as error:
            reason = "is not there" if not path.exists() else " ".join(str(error).split())
            raise DataError(f"{path}: {reason}.") from None
        if len(kinds) > 1:
            raise DataError(f"{path}: bands of types {', '.join(sorted(kinds))}; expected one.")
        whole = all(described) and len(set(described)) == len(described)
        numbered = tuple(f"band_{number}" for number in range(1, shape[0] + 1))
        return cls(*shape, kinds.pop(), tuple(described) if whole else numbered)


def _read(path: Path) -> NDArray[Any]:
    """Read all bands of a raster, (C, H, W)."""
    import rasterio
    from rasterio.errors import RasterioError

    from flair2_exp.data.readers import reading

    try:
        with reading(), rasterio.open(path) as file:
            pixels: NDArray[Any] = file.read()
    except (RasterioError, OSError, ValueError) as error:
        raise DamagedPatchError(f"{path}: {' '.join(str(error).split())}.") from None
    return pixels


def _read_rows(path: Path, required: Sequence[str]) -> list[dict[str, str]]:
    """Read a CSV with a head line.

    Raises:
        DataError: It cannot be read, lacks a column, has no line, or one that is too short.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            rows = [{k: (v or "").strip() for k, v in row.items() if k} for row in reader]
            names = [name.strip() for name in reader.fieldnames or ()]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"{path} cannot be read ({reason}).\nExpected a CSV with the columns "
            f"{', '.join(required)}; name it in dataset.options."
        ) from None
    for name in required:
        if name not in names:
            raise DataError(
                f"{path} has no column {name!r}; {nearest(name, names or ['none'])}\n"
                f"Expected a header line with {', '.join(required)}."
            )
    if not rows:
        raise DataError(f"{path} has a header line and nothing else.\nAdd a line for each of them.")
    for line, row in enumerate(rows, start=2):
        for name in required:
            if not row[name]:
                raise DataError(f"{path}, line {line}: {name} is empty.")
    return rows


def _index(rows: Sequence[Mapping[str, str]], path: Path) -> Patches:
    """Return the patches that a table lists.

    Raises:
        DataError: Two have one id, or a part is none.
    """
    ids = [row.get("id") or os.path.splitext(row["image"])[0] for row in rows]
    lines: dict[str, int] = {}
    for line, name in enumerate(ids, start=2):
        if name in lines:
            raise DataError(
                f"{path}: lines {lines[name]} and {line} are both patch {name!r}.\n"
                "Remove one, or add a column id with a name for each."
            )
        lines[name] = line
    parts = [row.get("part", "") for row in rows]
    for line, part in enumerate(parts, start=2):
        if part not in (*PARTS, ""):
            raise DataError(
                f"{path}, line {line}: part={part!r}; expected one of {', '.join(PARTS)}, or "
                "nothing with split=reference and split=file."
            )
    names = [f"{row['domain']}/{row['area']}" if row.get("domain") else row["area"] for row in rows]
    area_names, area = np.unique(names, return_inverse=True)
    return Patches(
        ids=np.array(ids),
        area_names=area_names,
        area=area.astype(np.int32),
        part=np.array(parts) if any(parts) else None,
    )


_WORDS: Final = {
    "true": True,
    "1": True,
    "yes": True,
    "": True,
    "false": False,
    "0": False,
    "no": False,
}


def _classes(path: Path) -> list[ClassRow]:
    """Read the table of classes.

    Raises:
        DataError: It cannot be read or a line is not a class; the message names it.
    """
    if path.suffix in (".yaml", ".yml"):
        from flair2_exp.config import yaml_files
        from flair2_exp.errors import ConfigError

        try:
            content = yaml_files.read(path)
        except (ConfigError, OSError) as error:
            raise DataError(f"{path} cannot be read as YAML.\n{error}") from None
        rows = content if isinstance(content, list) else []
        if not rows or not all(isinstance(row, dict) for row in rows):
            raise DataError(
                f"{path}: expected a list of classes, each with value, name and colour."
            )
    else:
        rows = list(_read_rows(path, ("value", "name", "colour")))
    made = []
    for number, row in enumerate(rows, start=1):
        scored = _WORDS.get(str(row.get("scored", "")).lower())
        try:
            if scored is None:
                raise ValueError(f"scored={row['scored']!r}; expected true or false")
            made.append(ClassRow(int(row["value"]), str(row["name"]), str(row["colour"]), scored))
        except (KeyError, ValueError) as error:
            raise DataError(
                f"{path}, class {number}: {error}.\nExpected value (a whole number), name, colour "
                "(#rrggbb) and, where it is not scored, scored=false."
            ) from None
    return made


def _nomenclature(
    rows: Sequence[ClassRow], ignored: Sequence[int], where: object
) -> tuple[Nomenclature, NDArray[np.uint8]]:
    """Return the classes, scored ones first and "other" last, and the index of each mask value.

    Raises:
        DataError: They contradict themselves.
    """
    ordered = sorted(rows, key=lambda row: (not row.scored, not row.scored and row.name == OTHER))
    values = [row.value for row in ordered]
    named = where if isinstance(where, str) else "dataset.options.classes"
    for value in (*values, *ignored):
        if not 0 <= value < _VALUES or value in set(values) & set(ignored):
            raise DataError(
                f"{named}, dataset.options.ignored={list(ignored)}: mask value {value}; expected 0 "
                f"to {_VALUES - 1}, each in one of the two."
            )
    classes = [LandCover(row.value, row.name, row.colour) for row in ordered]
    if ignored and not (ordered and ordered[-1].name == OTHER and not ordered[-1].scored):
        classes.append(LandCover(ignored[0], OTHER, "#000000"))
    try:
        made = Nomenclature(tuple(classes), sum(row.scored for row in ordered))
    except ValueError as error:
        raise DataError(f"{named}: {error}") from None
    table = np.full(_VALUES, _NO_CLASS, np.uint8)
    table[values] = np.arange(len(values))
    table[list(ignored)] = len(classes) - 1
    return made, table
