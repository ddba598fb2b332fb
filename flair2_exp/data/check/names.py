"""The names of a tree: what lies where it belongs, what does not, what lacks its counterpart."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from flair2_exp.data.check.findings import Finding, some
from flair2_exp.data.layout import AREA, DOMAIN, IMAGE, Folders

MASK: Final = re.compile(r"MSK_\d+\.tif")

_LEAVES: Final = {"aerial": "img", "labels": "msk", "satellite": "sen"}
"""The folder that an area's files lie in, by part."""

_DATA_FILES: Final = (".tif", ".tiff", ".npy", ".txt")
"""A file that ends like this was meant to be read; others are somebody's notes."""


@dataclass
class Area:
    """An area's files as its folders list them.

    Attributes:
        name: Like "D004_2021/Z1_NN".
        test: Whether it lies in the test tree.
        images: Paths by patch id.
        masks: Paths by patch id.
        series: The three files of its series, whether they are there or not; None without series.
    """

    name: str
    test: bool
    images: dict[str, Path] = field(default_factory=dict)
    masks: dict[str, Path] = field(default_factory=dict)
    series: tuple[Path, Path, Path] | None = None

    def patches(self) -> list[str]:
        """Return the ids of its images and masks, sorted."""
        return sorted(self.images.keys() | self.masks.keys())


@dataclass
class _Part:
    """What one of the tree's folders holds: by area, the paths by name without suffix."""

    folder: Path
    areas: dict[str, dict[str, Path]] = field(default_factory=dict)
    misnamed: set[str] = field(default_factory=set)
    """Areas in which a folder has a wrong name, so that emptiness is not news."""


def survey(folders: Folders, *, series: bool) -> tuple[list[Finding], list[Area]]:
    """List a tree and judge its names.

    Args:
        folders: Where its parts are.
        series: Whether the satellite series matter.

    Returns:
        What is wrong with names, and the areas that have anything to check.
    """
    findings: list[Finding] = []
    areas: list[Area] = []
    for test in (False, True):
        wanted = ["aerial", "labels", *(["satellite"] if series else [])]
        folder = {name: folders.part(name, test=test) for name in wanted}
        if not any(folder.values()):
            continue
        parts = {
            name: _list_part(name, path, findings)
            for name, path in folder.items()
            if path is not None
        }
        if "aerial" not in parts:
            findings.append(_missing_part("aerial", test))
        else:
            areas += _areas(parts, test, series, findings)
    aerial = folders.get("aerial_train") or folders.get("aerial_test")
    if aerial is not None and not any(area.images for area in areas):
        message = "no IMG_000001.tif in any D004_2021/Z1_NN/img below it"
        findings.append(Finding(aerial, "aerial", "empty-part", message))
    findings += _duplicates(areas)
    return findings, areas


def _list_part(name: str, folder: Path, findings: list[Finding]) -> _Part:
    """Walk DOMAIN/AREA/LEAF of one part."""
    part = _Part(folder)
    leaf = _LEAVES[name]
    for domain in _folders(folder, DOMAIN, "D004_2021", name, findings):
        for area in _folders(domain, AREA, "Z1_NN", name, findings):
            key = f"{domain.name}/{area.name}"
            before = len(findings)
            files: dict[str, Path] = {}
            for place in _folders(area, re.compile(leaf), leaf, key, findings):
                files |= _files(place, name, key, findings)
            part.areas[key] = files
            if any(finding.severity == "error" for finding in findings[before:]):
                part.misnamed.add(key)
    return part


def _entries(folder: Path, subject: str, findings: list[Finding]) -> list[os.DirEntry[str]]:
    """List a folder, sorted; hidden entries (a desktop's, a file server's) are left out."""
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if e.name[0] != "."), key=lambda e: e.name)
    except OSError as error:
        message = f"cannot be listed: {error.strerror}"
        findings.append(Finding(folder, subject, "unreadable-folder", message))
        return []


def _folders(
    folder: Path, pattern: re.Pattern[str], example: str, subject: str, findings: list[Finding]
) -> Iterator[Path]:
    """Return the folders of a proper name in a folder; the others are reported."""
    for entry in _entries(folder, subject, findings):
        path = Path(entry.path)
        if not entry.is_dir():
            findings.append(_stray(path, subject))
        elif pattern.fullmatch(entry.name):
            yield path
        else:
            message = f"a folder called {entry.name!r}, where one like {example} belongs"
            findings.append(Finding(path, subject, "misnamed-folder", message))


def _files(folder: Path, part: str, area: str, findings: list[Finding]) -> dict[str, Path]:
    """Return the files of an area by patch id (by their ending for a series)."""
    stem = f"SEN2_sp_{area.replace('/', '-')}_"
    files = {}
    for entry in _entries(folder, area, findings):
        path = Path(entry.path)
        if part == "aerial" and IMAGE.fullmatch(entry.name):
            files[path.stem] = path
        elif part == "labels" and MASK.fullmatch(entry.name):
            files[f"IMG{path.stem[3:]}"] = path
        elif part == "satellite" and entry.name in _series_names(stem):
            files[entry.name.removeprefix(stem)] = path
        elif entry.is_dir() or path.suffix.lower() not in _DATA_FILES:
            findings.append(_stray(path, area))
        else:
            example = {"aerial": "IMG_000001.tif", "labels": "MSK_000001.tif"}.get(
                part, f"{stem}data.npy"
            )
            message = f"called {entry.name!r}, where names are like {example}"
            findings.append(Finding(path, area, "misnamed-file", message))
    return files


def _series_names(stem: str) -> tuple[str, str, str]:
    return f"{stem}data.npy", f"{stem}masks.npy", f"{stem}products.txt"


def _stray(path: Path, subject: str) -> Finding:
    message = "belongs to no data set of this layout and is not read"
    return Finding(path, subject, "unexpected-file", message, "warning")


def _areas(
    parts: dict[str, _Part], test: bool, series: bool, findings: list[Finding]
) -> Iterator[Area]:
    """Return the areas of the train or of the test tree, each part held against the images."""
    aerial = parts["aerial"]
    # The test set may come without labels: they were withheld while the challenge ran.
    withheld = test and ("labels" not in parts or not any(parts["labels"].areas.values()))
    if withheld:
        message = "no masks for the test images: they can be predicted, not scored"
        place = parts["labels"].folder if "labels" in parts else aerial.folder
        findings.append(Finding(place, "labels_test", "labels-withheld", message, "warning"))
    elif "labels" not in parts:
        findings.append(_missing_part("labels", test))
    if series and "satellite" not in parts:
        findings.append(_missing_part("satellite", test))
    for name in sorted({area for part in parts.values() for area in part.areas}):
        area = Area(name, test, images=aerial.areas.get(name, {}))
        if not area.images:
            findings += _without_images(name, parts)
        elif "labels" in parts and not withheld:
            area.masks = parts["labels"].areas.get(name, {})
            findings += _counterparts(area, parts["labels"])
        if "satellite" in parts and area.images:
            place = parts["satellite"].folder / name
            if name in parts["satellite"].areas:
                stem = f"SEN2_sp_{name.replace('/', '-')}_"
                data, masks, products = (place / "sen" / n for n in _series_names(stem))
                area.series = data, masks, products
            else:
                message = f"no satellite series for the area's {len(area.images)} images"
                findings.append(Finding(place, name, "missing-area", message))
        yield area


def _without_images(name: str, parts: dict[str, _Part]) -> list[Finding]:
    """Judge an area that has a folder in some part, but no image."""
    aerial = parts["aerial"]
    if name in aerial.misnamed:
        return []
    if name in aerial.areas:
        return [Finding(aerial.folder / name, name, "empty-area", "a folder without any image")]
    if "labels" in parts and name in parts["labels"].areas:
        count = len(parts["labels"].areas[name])
        message = f"no images for the area's {count} masks"
        return [Finding(aerial.folder / name, name, "missing-area", message)]
    message = "a series without images: it is not read"
    place = parts["satellite"].folder / name
    return [Finding(place, name, "unused-area", message, "warning")]


def _counterparts(area: Area, labels: _Part) -> Iterator[Finding]:
    """Find images without masks and the reverse."""
    if area.name not in labels.areas:
        message = f"no masks for the area's {len(area.images)} images"
        yield Finding(labels.folder / area.name, area.name, "missing-area", message)
        return
    for patch in sorted(area.images.keys() - area.masks.keys()):
        yield Finding(area.images[patch], patch, "missing-mask", "an image without a mask")
    for patch in sorted(area.masks.keys() - area.images.keys()):
        yield Finding(area.masks[patch], patch, "missing-image", "a mask without an image")


def _duplicates(areas: list[Area]) -> Iterator[Finding]:
    """Find patches and areas that occur twice: what trains must not be what tests."""
    places: dict[str, list[Path]] = {}
    seen: dict[str, Area] = {}
    for area in areas:
        if area.name in seen and area.images and seen[area.name].images:
            path = next(iter(area.images.values())).parent.parent
            message = "an area of the train tree and of the test tree"
            yield Finding(path, area.name, "duplicate-area", message)
        seen[area.name] = area
        for patch, path in area.images.items():
            places.setdefault(patch, []).append(path)
    for patch, paths in places.items():
        for path in paths[1:]:
            others = some([str(other) for other in paths if other != path])
            yield Finding(path, patch, "duplicate-patch", f"the id of {others} too")


def _missing_part(part: str, test: bool) -> Finding:
    name = f"{part}_{'test' if test else 'train'}"
    message = f"no {part} folder for the {'test' if test else 'train'} tree"
    return Finding(Path(name), name, "missing-part", message)
