"""The header of a GeoTIFF, read without decoding a pixel.

In a fraction of the time that GDAL takes to open a file, and with what GDAL does not tell before
pixels are read: whether every block of pixels lies within the file. After the TIFF 6.0
specification (Adobe, 1992), sections 2, 8 and 15, and the BigTIFF extension.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_WIDTH, _HEIGHT, _BITS, _BANDS, _FORMAT = 256, 257, 258, 277, 339
_OFFSETS: Final = (273, 324)
"""Tags of the blocks' places: strips, tiles."""
_LENGTHS: Final = (279, 325)
_WANTED: Final = frozenset({_WIDTH, _HEIGHT, _BITS, _BANDS, _FORMAT, *_OFFSETS, *_LENGTHS})
_TYPES: Final = {1: "B", 3: "H", 4: "I", 16: "Q"}
"""Unsigned integers by the TIFF type number; all that the wanted tags may hold."""
_FORMATS: Final = {1: "uint", 2: "int", 3: "float"}
_MOST: Final = 1_000_000
"""Values of a tag and entries of a directory, beyond which a header is nonsense."""


class TruncatedError(ValueError):
    """The file ends before what its header announces."""


@dataclass(frozen=True)
class Header:
    """What a file's header says.

    Attributes:
        bands: Samples of a pixel.
        height: Rows.
        width: Columns.
        dtype: NumPy's name of the samples' type, like `uint8`; `mixed` where bands differ.
    """

    bands: int
    height: int
    width: int
    dtype: str


def read_header(path: Path) -> Header:
    """Read a TIFF's first directory and make sure that its pixels are in the file.

    Raises:
        TruncatedError: The directory or a block of pixels lies beyond the end, or a block was never
            written.
        ValueError: No TIFF, or one whose header makes no sense.
        OSError: The file cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        tags = _Reader(descriptor).tags()
    finally:
        os.close(descriptor)
    try:
        width, height = tags[_WIDTH][0], tags[_HEIGHT][0]
        bits = set(tags[_BITS])
    except (KeyError, IndexError):
        raise ValueError("a TIFF without width, height or bits per sample") from None
    formats = set(tags.get(_FORMAT, (1,)))
    bands = (tags.get(_BANDS) or (1,))[0]
    if not width or not height or not bands:
        raise ValueError(f"a raster of {bands} bands, {height} x {width} pixels")
    if len(bits) != 1 or len(formats) != 1:
        return Header(bands, height, width, "mixed")
    kind = _FORMATS.get(formats.pop(), "unknown")
    return Header(bands, height, width, f"{kind}{bits.pop()}")


class _Reader:
    """A TIFF's directory, entry by entry."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._size = os.fstat(descriptor).st_size
        self._start = os.pread(descriptor, 4096, 0)
        head = self._at(0, 8)
        self._order = {b"II": "<", b"MM": ">"}.get(head[:2], "")
        magic = struct.unpack(self._order + "H", head[2:4])[0] if self._order else 0
        if magic not in (42, 43):
            raise ValueError("not a TIFF: it does not begin like one")
        self._big = magic == 43

    def tags(self) -> dict[int, tuple[int, ...]]:
        """Return the wanted tags' values; check the blocks of pixels on the way."""
        at, count_format, entry_size = (8, "Q", 20) if self._big else (4, "H", 12)
        place = self._unpack("Q" if self._big else "I", at)
        entries = self._unpack(count_format, place)
        if not 0 < entries < _MOST:
            raise ValueError(f"a TIFF directory of {entries} entries")
        place += struct.calcsize(count_format)
        block = self._at(place, entries * entry_size)
        tags = {}
        for start in range(0, len(block), entry_size):
            tag, kind = struct.unpack_from(self._order + "HH", block, start)
            if tag in _WANTED:
                tags[tag] = self._values(kind, block[start + 4 : start + entry_size])
        self._require_blocks(tags)
        return tags

    def _values(self, kind: int, entry: bytes) -> tuple[int, ...]:
        """Return an entry's values: from itself where they fit, else from where it points to."""
        half = len(entry) // 2
        word = self._order + ("Q" if self._big else "I")
        (count,) = struct.unpack(word, entry[:half])
        if kind not in _TYPES or not 0 < count < _MOST:
            raise ValueError(f"a TIFF tag of type {kind} with {count} values")
        values = f"{self._order}{count}{_TYPES[kind]}"
        length = struct.calcsize(values)
        if length <= half:
            return struct.unpack(values, entry[half : half + length])
        (place,) = struct.unpack(word, entry[half:])
        return struct.unpack(values, self._at(place, length))

    def _require_blocks(self, tags: dict[int, tuple[int, ...]]) -> None:
        for offset_tag, length_tag in zip(_OFFSETS, _LENGTHS, strict=True):
            if offset_tag in tags and length_tag in tags:
                offsets, lengths = tags[offset_tag], tags[length_tag]
                break
        else:
            raise ValueError("a TIFF without blocks of pixels")
        if len(offsets) != len(lengths):
            raise ValueError(f"a TIFF of {len(offsets)} blocks with {len(lengths)} lengths")
        if not all(lengths):
            raise TruncatedError(f"{lengths.count(0)} of {len(lengths)} blocks were never written")
        end = max(map(int.__add__, offsets, lengths))
        if end > self._size:
            raise TruncatedError(f"{self._size:,} bytes, but pixels up to byte {end:,}")

    def _unpack(self, code: str, place: int) -> int:
        (value,) = struct.unpack(self._order + code, self._at(place, struct.calcsize(code)))
        return int(value)

    def _at(self, place: int, length: int) -> bytes:
        if place + length > self._size:
            raise TruncatedError(f"{self._size:,} bytes, but its header up to {place + length:,}")
        if place + length <= len(self._start):
            return self._start[place : place + length]
        return os.pread(self._descriptor, length, place)
