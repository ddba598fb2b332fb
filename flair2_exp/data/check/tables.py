"""The two JSON files: where each patch lies in its area's series, and its metadata."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from flair2_exp.data.check.findings import Entry, Finding
from flair2_exp.data.check.names import Area
from flair2_exp.data.check.series import SeriesShape
from flair2_exp.data.layout import Folders, parse_centroid
from flair2_exp.data.metadata import YEARS, parse_record

_ENTRIES: Final = {
    "centroids": (".tif", "missing-centroid"),
    "aerial_metadata": ("", "missing-metadata"),
}
"""By table: what follows a patch's id in its keys, and the kind of an absent one."""

Check = Callable[[Entry, Any, Area], None]
"""Judges what a table holds for a patch of an area."""


def check_table(
    folders: Folders, part: str, areas: Sequence[Area], check: Check, findings: list[Finding]
) -> None:
    """Check a table and its entry for each image.

    Args:
        folders: Where the tree's parts are.
        part: `centroids` or `aerial_metadata`.
        areas: Areas with their images.
        check: Judges one entry.
        findings: Receives what is wrong.
    """
    path = folders.get(part)
    if path is None:
        missing = Entry(Path(part), part, findings)
        missing.error("missing-part", "no such JSON file beside the folders")
        return
    repeated: list[str] = []
    table = Entry(path, part, findings).read(lambda file: _load(file, repeated), "bad-json")
    for name in repeated:
        entry = Entry(path, name.removesuffix(".tif"), findings)
        entry.error("duplicate-key", f"key {name!r} more than once")
    if table is None:
        return
    suffix, kind = _ENTRIES[part]
    for area in areas:
        for patch in area.images:
            entry = Entry(path, patch, findings)
            if patch + suffix in table:
                check(entry, table[patch + suffix], area)
            else:
                entry.error(kind, f"no entry {patch + suffix!r}")


def _load(path: Path, repeated: list[str]) -> dict[str, Any]:
    """Read a JSON object by patch; `repeated` receives the keys that occur more than once."""

    def together(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            repeated.extend(name for name, count in counts.items() if count > 1)
        return values

    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=together)
    except RecursionError as error:
        raise ValueError(str(error)) from None
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not an object by patch")
    return content


def check_centroid(entry: Entry, value: Any, shape: SeriesShape | None, super_patch: int) -> None:
    """Check where a patch lies in its area's series.

    Args:
        entry: The JSON file and the patch.
        value: What the file holds for the patch.
        shape: The area's arrays; None where unknown.
        super_patch: Pixels on a side of the crop that must fit into them.
    """
    place = parse_centroid(value)
    if place is None:
        message = f"{str(value)[:80]} for '{entry.subject}.tif' instead of [row, column]"
        entry.error("malformed-centroid", message)
    if place is None or shape is None:
        return
    row, column = place
    pixels = f"the area's {shape.height} x {shape.width} pixels"
    half = super_patch // 2
    if not (0 <= row < shape.height and 0 <= column < shape.width):
        entry.error("centroid-outside", f"row {row}, column {column} lies outside {pixels}")
    elif not (half <= row <= shape.height - half and half <= column <= shape.width - half):
        message = f"a crop of {super_patch} pixels about row {row}, column {column} leaves {pixels}"
        entry.error("centroid-near-border", message)


def check_metadata(entry: Entry, value: Any, area: Area) -> None:
    """Check the metadata of a patch of an area."""
    try:
        year = parse_record(value)[3]
    except (ValueError, TypeError, OverflowError) as error:  # the last two: endless integers
        entry.error("malformed-metadata", str(error)[:200])
        return
    if year not in YEARS:
        message = f"year {year} has no place in the code of {YEARS[0]} to {YEARS[-1]}"
        entry.warn("unknown-year", message)
    place = f"{value.get('domain')}/{value.get('zone')}"
    if place != area.name:
        message = f"domain and zone {place[:80]} of a patch in {area.name}"
        entry.warn("misplaced-metadata", message)
