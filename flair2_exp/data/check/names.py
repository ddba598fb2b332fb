"""The names of a tree: what lies where it belongs, what does not, what lacks its counterpart."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from flair2_exp.data.check.findings import Entry, Finding
from flair2_exp.data.layout import AREA, DOMAIN, Folders, SeriesFiles
from flair2_exp.errors import some

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
    images: dict[str, Path]
    masks: dict[str, Path] = field(default_factory=dict)
    series: SeriesFiles | None = None

    def patches(self) -> list[str]:
        """Return the ids of its images and masks, sorted."""
        return sorted(self.images.keys() | self.masks.keys())


@dataclass
class _Part:
    """What one of the tree's folders holds: by area, the paths of the files by patch id."""

    folder: Path
    areas: dict[str, dict[str, Path]] = field(default_factory=dict)
    misnamed: set[str] = field(default_factory=set)
    """Areas in which a folder has a wrong name, so that emptiness is not news."""


def survey(folders: Folders, findings: list[Finding], *, series: bool) -> list[Area]:
    """List a tree and judge its names.

    Returns:
        The areas that have images.
    """
    areas: list[Area] = []
    wanted = [part for part in _LEAVES if series or part != "satellite"]
    for test in (False, True):
        places = {name: folders.part(name, test=test) for name in wanted}
        parts = {
            name: _list_part(Entry(place, name, findings))
            for name, place in places.items()
            if place is not None
        }
        for name in wanted if parts else ():
            if name not in parts and (name, test) != ("labels", True):
                part = f"{name}_{'test' if test else 'train'}"
                missing = Entry(Path(part), part, findings)
                missing.error("missing-part", "no such folder beside the others")
        if "aerial" in parts:
            areas += _areas(parts, test, findings)
    aerial = folders.get("aerial_train") or folders.get("aerial_test")
    if aerial is not None and not areas:
        message = "no IMG_000001.tif in any D004_2021/Z1_NN/img below it"
        Entry(aerial, "aerial", findings).error("empty-part", message)
    _find_duplicates(areas, findings)
    return areas


def _list_part(root: Entry) -> _Part:
    """Walk DOMAIN/AREA/LEAF of one part."""
    part = _Part(root.path)
    leaf = _LEAVES[root.subject]
    for domain in _folders(root, DOMAIN, "D004_2021"):
        for place in _folders(domain, AREA, "Z1_NN"):
            name = f"{domain.path.name}/{place.path.name}"
            area = Entry(place.path, name, root.findings)
            before = len(root.findings)
            part.areas[name] = {}
            for folder in _folders(area, re.compile(leaf), leaf):
                part.areas[name] |= _files(folder, root.subject)
            if any(finding.severity == "error" for finding in root.findings[before:]):
                part.misnamed.add(name)
    return part


def _children(folder: Entry) -> Iterator[tuple[Entry, bool]]:
    """Return what is in a folder, sorted, and whether each is a folder.

    Hidden entries (a desktop's, a file server's) are left out.
    """
    try:
        with os.scandir(folder.path) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        folder.error("unreadable-folder", f"cannot be listed: {error.strerror}")
        return
    for entry in entries:
        if not entry.name.startswith("."):
            yield Entry(Path(entry.path), folder.subject, folder.findings), entry.is_dir()


def _folders(parent: Entry, pattern: re.Pattern[str], example: str) -> Iterator[Entry]:
    """Return the folders of a proper name in a folder; the others are reported."""
    for entry, is_folder in _children(parent):
        if not is_folder:
            _report_stray(entry)
        elif pattern.fullmatch(entry.path.name):
            yield entry
        else:
            message = f"a folder called {entry.path.name!r}, where one like {example} belongs"
            entry.error("misnamed-folder", message)


def _files(folder: Entry, part: str) -> dict[str, Path]:
    """Return the files of an area in a part by patch id, as of a mask, whatever the part."""
    area = folder.subject.replace("/", "-")
    pattern, example = {
        "aerial": (r"IMG_\d+\.tif", "IMG_000001.tif"),
        "labels": (r"MSK_\d+\.tif", "MSK_000001.tif"),
        "satellite": (
            rf"SEN2_sp_{area}_(data\.npy|masks\.npy|products\.txt)", f"SEN2_sp_{area}_data.npy",
        ),
    }[part]  # fmt: skip
    files = {}
    for entry, is_folder in _children(folder):
        name = entry.path.name
        if re.fullmatch(pattern, name):
            files[f"IMG{entry.path.stem[3:]}"] = entry.path
        elif is_folder or entry.path.suffix.lower() not in _DATA_FILES:
            _report_stray(entry)
        else:
            entry.error("misnamed-file", f"called {name!r}, where names are like {example}")
    return files


def _report_stray(entry: Entry) -> None:
    entry.warn("unexpected-file", "belongs to no data set of this layout and is not read")


def _areas(parts: dict[str, _Part], test: bool, findings: list[Finding]) -> Iterator[Area]:
    """Return the areas of the train or of the test tree, each part held against the images."""
    aerial, labels, satellite = parts["aerial"], parts.get("labels"), parts.get("satellite")
    # The test set may come without labels: they were withheld while the challenge ran.
    if test and (labels is None or not any(labels.areas.values())):
        message = "no masks for the test images: they can be predicted, not scored"
        entry = Entry((labels or aerial).folder, "labels_test", findings)
        entry.warn("labels-withheld", message)
        labels = None
    for name in sorted({area for part in parts.values() for area in part.areas}):
        area = Area(name, test, aerial.areas.get(name, {}))
        if not area.images:
            _judge_without_images(name, parts, findings)
            continue
        if labels is not None:
            area.masks = labels.areas.get(name, {})
            _compare(area, labels, findings)
        if satellite is not None and name in satellite.areas:
            stem = f"SEN2_sp_{name.replace('/', '-')}"
            ends = ("data.npy", "masks.npy", "products.txt")
            paths = (satellite.folder / name / "sen" / f"{stem}_{end}" for end in ends)
            area.series = SeriesFiles(*paths)
        elif satellite is not None:
            message = f"no satellite series for the area's {len(area.images)} images"
            Entry(satellite.folder / name, name, findings).error("missing-area", message)
        yield area


def _judge_without_images(name: str, parts: dict[str, _Part], findings: list[Finding]) -> None:
    """Judge an area that has a folder in some part, but no image."""
    aerial, labels, satellite = parts["aerial"], parts.get("labels"), parts.get("satellite")
    entry = Entry(aerial.folder / name, name, findings)
    if name in aerial.areas and name not in aerial.misnamed:
        entry.error("empty-area", "a folder without any image")
    elif labels is not None and name in labels.areas and name not in aerial.areas:
        entry.error("missing-area", f"no images for the area's {len(labels.areas[name])} masks")
    elif satellite is not None and name not in aerial.areas:
        entry = Entry(satellite.folder / name, name, findings)
        entry.warn("unused-area", "a series without images: it is not read")


def _compare(area: Area, labels: _Part, findings: list[Finding]) -> None:
    """Find images without masks and the reverse."""
    if area.name not in labels.areas:
        message = f"no masks for the area's {len(area.images)} images"
        Entry(labels.folder / area.name, area.name, findings).error("missing-area", message)
        return
    for patch in sorted(area.images.keys() - area.masks.keys()):
        Entry(area.images[patch], patch, findings).error("missing-mask", "an image without a mask")
    for patch in sorted(area.masks.keys() - area.images.keys()):
        Entry(area.masks[patch], patch, findings).error("missing-image", "a mask without an image")


def _find_duplicates(areas: list[Area], findings: list[Finding]) -> None:
    """Find patches and areas that occur twice: what trains must not be what tests."""
    places: dict[str, list[Path]] = {}
    seen: set[str] = set()
    for area in areas:
        if area.name in seen:
            folder = next(iter(area.images.values())).parent.parent
            message = "an area of the train tree and of the test tree"
            Entry(folder, area.name, findings).error("duplicate-area", message)
        seen.add(area.name)
        for patch, path in area.images.items():
            places.setdefault(patch, []).append(path)
    for patch, paths in places.items():
        for path in paths[1:]:
            others = some([str(other) for other in paths if other != path])
            entry = Entry(path, patch, findings)
            entry.error("duplicate-patch", f"the id of {others} too")
