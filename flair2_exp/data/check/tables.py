"""The two JSON files: where each patch lies in its area's series, and its metadata."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flair2_exp.data.check.findings import Finding, file_problem
from flair2_exp.data.check.series import SeriesShape
from flair2_exp.data.layout import parse_centroid
from flair2_exp.data.metadata import YEARS, parse_record

Table = Mapping[str, Any]


def read_table(path: Path, part: str) -> tuple[list[Finding], Table | None]:
    """Read a JSON object by patch.

    Args:
        path: The file.
        part: What it is called in findings.

    Returns:
        What is wrong, and the object; None where there is none to read.
    """
    problem = file_problem(path, part)
    if problem is not None:
        return [problem], None
    twice: list[str] = []

    def together(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            twice.extend(name for name, count in counts.items() if count > 1)
        return values

    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=together)
    except (OSError, ValueError, RecursionError) as error:
        return [Finding(path, part, "bad-json", f"cannot be read as JSON: {error}")], None
    findings = [
        Finding(path, name.removesuffix(".tif"), "duplicate-key", f"key {name!r} more than once")
        for name in twice
    ]
    if not isinstance(content, dict):
        kind = type(content).__name__
        return [Finding(path, part, "bad-json", f"holds a {kind}, not an object by patch")], None
    return findings, content


def check_centroid(
    path: Path, patch: str, table: Table, shape: SeriesShape | None, super_patch: int
) -> Finding | None:
    """Check where a patch lies in its area's series.

    Args:
        path: The JSON file.
        patch: The patch's id.
        table: The file's content, or the part of it for some patches.
        shape: The area's arrays; None where unknown.
        super_patch: Pixels on a side of the crop that must fit into them.
    """
    name = f"{patch}.tif"
    if name not in table:
        return Finding(path, patch, "missing-centroid", f"no entry {name!r}")
    place = parse_centroid(table[name])
    if place is None:
        message = f"{str(table[name])[:80]} for {name!r} instead of [row, column]"
        return Finding(path, patch, "malformed-centroid", message)
    if shape is None:
        return None
    row, column = place
    pixels = f"the area's {shape.height} x {shape.width} pixels"
    if not (0 <= row < shape.height and 0 <= column < shape.width):
        message = f"row {row}, column {column} lies outside {pixels}"
        return Finding(path, patch, "centroid-outside", message)
    half = super_patch // 2
    if not (half <= row <= shape.height - half and half <= column <= shape.width - half):
        message = f"a crop of {super_patch} pixels about row {row}, column {column} leaves {pixels}"
        return Finding(path, patch, "centroid-near-border", message)
    return None


def check_metadata(path: Path, patches: Iterable[tuple[str, str]], table: Table) -> list[Finding]:
    """Check the metadata of patches.

    Args:
        path: The JSON file.
        patches: Pairs of a patch's id and its area ("D004_2021/Z1_NN").
        table: The file's content.
    """
    findings = []
    for patch, area in patches:
        if patch not in table:
            findings.append(Finding(path, patch, "missing-metadata", f"no entry {patch!r}"))
            continue
        content = table[patch]
        try:
            year = parse_record(content)[3]
        except (ValueError, TypeError, OverflowError) as error:  # the last two: endless integers
            findings.append(Finding(path, patch, "malformed-metadata", str(error)[:200]))
            continue
        if year not in YEARS:
            message = f"year {year} has no place in the code of {YEARS[0]} to {YEARS[-1]}"
            findings.append(Finding(path, patch, "unknown-year", message, "warning"))
        place = f"{content.get('domain')}/{content.get('zone')}"
        if place != area:
            message = f"domain and zone {place[:80]} of a patch in {area}"
            findings.append(Finding(path, patch, "misplaced-metadata", message, "warning"))
    return findings
