"""Array files: an area's `.npy`, mapped into memory; our own `.npz`, read and written whole.

`numpy.load` maps as well, but a sample opens two such files, and parsing two headers anew takes
longer than copying the crop out of the arrays. Headers are therefore kept; the files are not, since
a process may hold fewer open files than FLAIR #2 has areas.
"""

from __future__ import annotations

import functools
import math
import mmap
import os
import tokenize
import zipfile
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flair2_exp.files import replacing

DATA_TYPES: Final = ("<u2",)
MASK_TYPES: Final = ("|u1", "<u2")
"""Types that an area's reflectances, and its probabilities of snow and cloud, may have."""

_HEADER_ERRORS: Final = (
    SyntaxError, tokenize.TokenError, TypeError, RecursionError, MemoryError, OverflowError,
)  # fmt: skip
"""What NumPy raises besides ValueError for a header that is not a Python literal."""


_HEADERS: Final = {
    (1, 0): (2, np.lib.format.read_array_header_1_0),
    (2, 0): (4, np.lib.format.read_array_header_2_0),
}
"""By version: bytes of the header's length, and NumPy's reader of what begins with it."""


class Header(NamedTuple):
    """What the header of an array file says."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    """Whether the first axis is the fastest."""
    start: int
    """Bytes before the values."""

    @property
    def length(self) -> int:
        """Bytes that header and values take."""
        return self.start + math.prod(self.shape) * self.dtype.itemsize


def read_header(path: Path) -> Header:
    """Read the header of a `.npy` file; the values stay unread.

    Raises:
        OSError: The file cannot be read.
        EOFError: The file ends within its header.
        ValueError: It is not a `.npy` file of version 1 or 2 (version 3 is for names of fields).
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        if np.lib.format.MAGIC_PREFIX.startswith(start[:6]) and len(start) < 8:
            raise EOFError(f"{size} bytes, the file ends within its header")
        file.seek(0)
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"version {version[0]}.{version[1]}, where 1.0 and 2.0 hold numbers")
        width, read = _HEADERS[version]
        rest = int.from_bytes(file.read(width), "little")
        if file.tell() + rest > size:
            raise EOFError(f"{size:,} bytes, the file ends within its header")
        file.seek(8)
        try:
            shape, fortran, dtype = read(file)
        except _HEADER_ERRORS as error:
            raise ValueError(f"its header makes no sense ({error})") from None
        if any(length < 0 for length in shape):
            raise ValueError(f"shape {shape}")
        return Header(shape, dtype, fortran, file.tell())


def open_array(path: Path) -> NDArray[Any]:
    """Map the array of a `.npy` file into memory, read-only.

    Returns:
        The array, which keeps the map alive, and the map a file descriptor of its own: an array is
        for as long as a sample takes, not to be collected.

    Raises:
        OSError: The file cannot be read.
        EOFError: The file ends before the last value.
        ValueError: It is not an array of numbers; pickled objects are never loaded.
    """
    with path.open("rb") as file:
        state = os.fstat(file.fileno())
        header = _kept_header(path, state.st_mtime_ns, state.st_size)
        if header.dtype.hasobject:
            raise ValueError("it holds pickled objects, which are never loaded")
        if header.length > state.st_size:
            raise EOFError(f"{state.st_size:,} bytes, where its header announces {header.length:,}")
        values = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    order: Literal["F", "C"] = "F" if header.fortran else "C"
    return np.ndarray(header.shape, header.dtype, values, header.start, order=order)


@functools.lru_cache(maxsize=4096)
def _kept_header(path: Path, changed: int, size: int) -> Header:
    """Return the header of a file in this state; two files for each of FLAIR #2's 916 areas fit."""
    del changed, size
    return read_header(path)


def read_npz(path: Path) -> dict[str, NDArray[Any]] | None:
    """Return the arrays of an `.npz` file; None where there is no such file, or a broken one."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile):
        return None


def write_npz(path: Path, **arrays: NDArray[Any]) -> None:
    """Write arrays as an `.npz` file, in one step.

    Raises:
        OSError: It cannot be written; one that was there is as it was.
    """
    with replacing(path) as fresh, fresh.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
