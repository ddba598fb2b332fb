"""Writing a prepared store: see `store` for its form."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from flair2_exp import locking
from flair2_exp.config.data import DataConfig, DataGroups, S2PreprocConfig
from flair2_exp.data import digests
from flair2_exp.data.arrays import read_npz, write_npz
from flair2_exp.data.forked import forked
from flair2_exp.data.sentinel2 import BANDS
from flair2_exp.data.source import DataSource, Patches, Reader, Sample
from flair2_exp.data.store import (
    FORMAT,
    HEADER,
    SHARD,
    describe,
    differences,
    frame_bytes,
    lost_file,
    settings_of,
    shard_folder,
    stale,
)
from flair2_exp.errors import DamagedPatchError, DataError
from flair2_exp.files import write_text
from flair2_exp.progress import Progress


@dataclass(frozen=True)
class Prepared:
    """What a preparation did."""

    patches: int
    """Patches in the store."""
    written: int
    """Patches written by this call; the others were there."""
    damaged: int
    """Patches that could not be read, marked in the store."""
    incomplete: int
    """Patches without a mask, a series or a place in it, marked alike."""
    size: int
    """Bytes of the whole store."""


def prepare(
    source: DataSource,
    path: str | Path,
    *,
    series: S2PreprocConfig | None,
    workers: int = 1,
    shard: int = SHARD,
    on_damaged: Literal["stop", "skip"] = "stop",
    progress: Progress | None = None,
) -> Prepared:
    """Write a store of all patches, or finish or renew one.

    Args:
        source: The data set, the size of its patches known.
        path: The store's folder; created.
        series: How to preprocess the series; None leaves them out.
        workers: Processes.
        shard: Patches in a shard of a new store.
        on_damaged: Whether a damaged patch stops the preparation, or is marked and skipped. One
            that lacks a file altogether is always marked: a run that needs it says so.
        progress: Called with the patches done and all patches.

    Raises:
        DataError: The folder holds a store of other settings or something else, another
            preparation is at work in it, it cannot be written, the disk is too small, or one of
            the processes died.
        DamagedPatchError: A patch is damaged.
    """
    path = Path(path)
    with _alone(path):
        index = source.index
        _start(path, settings_of(source, series), shard)
        reads = source.has & ({"aerial"} if series is None else {"aerial", "satellite"})
        states = source.states(np.arange(len(index)), reads)
        size = int(describe(path)["shard"])
        job = _Job(source, path, series, on_damaged, reads, states, size)
        todo = [number for number in range(job.shards) if not job.is_fresh(number)]
        missing = sum(len(job.patches(number)) for number in todo)
        if todo:
            (path / "index.npz").unlink(missing_ok=True)
            _require_space(job, missing)
            _ = job.digests  # now: the processes inherit them
        done = len(index) - missing
        for number in forked(job.write, todo, workers, died=_DIED):
            done += len(job.patches(number))
            if progress is not None:
                progress(done, len(index))
        damaged = int((_finish(job)["damaged"] & ~job.incomplete).sum())
        total = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        return Prepared(len(index), missing, damaged, int(job.incomplete.sum()), total)


_DIED: Final = (
    "a process of the preparation died: out of memory, or killed.\n"
    "Call it again, which resumes here, with fewer --workers."
)


def require_store_folder(folder: str | os.PathLike[str]) -> None:
    """Refuse a folder that holds something else than a prepared store, or the start of one.

    Raises:
        DataError: It does.
    """
    path = Path(folder)
    if path.exists():
        names = set(os.listdir(path)) if path.is_dir() else {path.name}
        # Another preparation may have come no further than its lock or half its description.
        begun = (locking.FILE, ".store.json.")
        if "store.json" not in names and not all(name.startswith(begun) for name in names):
            raise DataError(
                f"{path} is neither empty nor a prepared store.\nChoose another folder."
            )


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the store's folder, made if missing."""
    require_store_folder(path)
    with _writing(path):
        path.mkdir(parents=True, exist_ok=True)
    with locking.locked(path, "choose another folder"):
        yield


def _start(path: Path, settings: dict[str, Any], shard: int) -> None:
    """Describe the store, or refuse one of other settings; tidy up after a killed preparation."""
    description = path / "store.json"
    if description.exists():
        different = differences(describe(path)["settings"], settings)
        if different:
            raise DataError(
                f"{path} is a store of other settings: {different}.\n"
                "Choose another folder for these settings, or remove that one."
            )
    with _writing(path):
        if not description.exists():
            content = {"format": FORMAT, "shard": shard, "settings": settings}
            write_text(description, json.dumps(content, indent=1) + "\n")
        (path / "shards").mkdir(exist_ok=True)
    for left in (path / "shards").glob("*.part*"):
        shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Tell what keeps the store from being written: a full disk, no permission."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror}).\n"
            "Make room and call it again, which resumes here, or choose another folder."
        ) from None


@dataclass(frozen=True)
class _Job:
    """One preparation; its processes inherit it."""

    source: DataSource
    path: Path
    series: S2PreprocConfig | None
    on_damaged: Literal["stop", "skip"]
    reads: frozenset[str]
    states: digests.States
    size: int
    """Patches in a shard."""

    @property
    def index(self) -> Patches:
        return self.source.index

    @functools.cached_property
    def incomplete(self) -> NDArray[np.bool_]:
        """(N,) patches that lack something and are not stored."""
        lacking = self.source.lacking(self.reads).values()
        return np.asarray(np.any([np.zeros(len(self.index), np.bool_), *lacking], axis=0))

    @functools.cached_property
    def reader(self) -> Reader:
        """Reads what is stored: all bands, and all classes (of FLAIR #2, 19)."""
        groups = DataGroups(
            data=DataConfig(classes=19), s2_preproc=self.series or S2PreprocConfig()
        )
        return self.source.reader(groups, self.reads)

    @functools.cached_property
    def digests(self) -> digests.Digests:
        """(N, k, 16) of the patches' files, for the fingerprints of runs that read the store."""
        return self.source.digests(np.arange(len(self.index)), self.reads)

    @property
    def shards(self) -> int:
        return math.ceil(len(self.index) / self.size)

    def patches(self, shard: int) -> range:
        """Return the positions of a shard's patches."""
        return range(shard * self.size, min((shard + 1) * self.size, len(self.index)))

    def is_fresh(self, shard: int) -> bool:
        """Return whether the shard is there, whole, and of the sources as they are now."""
        folder = shard_folder(self.path, shard)
        table = read_npz(Path(folder, "index.npz"))
        if table is None or stale(table, self.source, self.states, self.patches(shard)):
            return False
        return not lost_file(folder, table["counts"], self.source, self.series)

    def write(self, shard: int) -> int:
        """Write a shard beside its place, then move it there."""
        final = Path(shard_folder(self.path, shard))
        temporary = final.with_name(f"{final.name}.part{os.getpid()}")
        try:
            with _writing(self.path):
                temporary.mkdir()
                table = self._write_arrays(shard, temporary)
                write_npz(temporary / "index.npz", **table)
                shutil.rmtree(final, ignore_errors=True)
                temporary.replace(final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return shard

    def _write_arrays(self, shard: int, folder: Path) -> dict[str, NDArray[Any]]:
        """Write the shard's arrays and return its part of the index."""
        size, bands, kind = self.source.patch_size, len(self.source.bands), self.source.image_type
        images = _Appended(folder / "images.npy", (bands, size, size), kind)
        masks = _Appended(folder / "masks.npy", (size, size), np.uint8)
        arrays = [images, masks]
        if self.series is not None:
            shape = (BANDS, self.series.size, self.series.size)
            means = np.float32 if self.series.monthly else np.uint16
            arrays.append(frames := _Appended(folder / "series.npy", shape, means))
        blank = np.zeros((1, bands, size, size), dtype=kind)
        nothing = np.full((size, size), 255, dtype=np.uint8)
        counts, days, covered, damaged = [], [np.empty(0, dtype=np.int64)], [], []
        for patch in self.patches(shard):
            sample = self._read(patch)
            damaged.append(sample is None)
            sample = sample or Sample(label=nothing)
            images.append(blank if sample.image is None else sample.image[None])
            masks.append(sample.label[None] + np.uint8(1))  # values, 0 where nothing was read
            covered.append(sample.covered)
            counts.append(0 if sample.days is None else len(sample.days))
            if sample.frames is not None and sample.days is not None:
                frames.append(sample.frames)
                days.append(sample.days)
        for array in arrays:
            array.close()
        part = slice(self.patches(shard).start, self.patches(shard).stop)
        return {
            "ids": self.index.ids[part],
            "areas": self.index.area_names[self.index.area[part]],
            "centroids": self.source.centroids[part],
            "sources": self.states[part],
            "digests": self.digests[part],
            "counts": np.array(counts),
            "days": np.concatenate(days),
            "covered": np.array(covered),
            "damaged": np.array(damaged),
        }

    def _read(self, patch: int) -> Sample | None:
        """Read what is stored of a patch; None where it is incomplete, or damaged and skipped."""
        if self.incomplete[patch]:
            return None
        try:
            return self.reader.read(patch)
        except DamagedPatchError as error:
            if self.on_damaged == "skip":
                return None
            raise DamagedPatchError(
                f"patch {self.index.name(patch)} is damaged: {error}\n"
                "Run `flair2-exp check` on the data set and replace what it lists, or skip damaged "
                "patches."
            ) from None


class _Appended:
    """A `.npy` file written record by record; the header is completed at the end."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self._file = path.open("wb")
        self._file.write(bytes(HEADER))
        self._shape = shape
        self._dtype = np.dtype(dtype)
        self._records = 0

    def append(self, records: NDArray[Any]) -> None:
        self._file.write(np.ascontiguousarray(records, dtype=self._dtype).data)
        self._records += len(records)

    def close(self) -> None:
        shape = (self._records, *self._shape)
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": shape}
        self._file.seek(0)
        np.lib.format.write_array_header_1_0(self._file, header)
        assert self._file.tell() == HEADER, "the store's reader expects headers of one size"
        self._file.close()


def _require_space(job: _Job, patches: int) -> None:
    """Refuse a disk that is too small, by the series of an area with many acquisitions."""
    bands = len(job.source.bands) * job.source.image_type.itemsize
    size = job.source.patch_size**2 * (bands + 1)
    if job.series is not None:
        frames = 12 if job.series.monthly else 60  # an area of FLAIR #2 has 56 acquisitions
        size += frames * frame_bytes(job.series)
    free = shutil.disk_usage(job.path).free
    if free < patches * size:
        raise DataError(
            f"{job.path} has {free / 1e9:.1f} GB free; {patches} patches need about "
            f"{patches * size / 1e9:.1f} GB.\nChoose a folder on a larger disk."
        )


def _finish(job: _Job) -> dict[str, NDArray[Any]]:
    """Gather the shards' indexes: the store is complete.

    Returns:
        The whole index.
    """
    files = (Path(shard_folder(job.path, shard), "index.npz") for shard in range(job.shards))
    tables = [table for file in files if (table := read_npz(file)) is not None]
    assert len(tables) == job.shards, "each was just found whole or written"
    for folder in (job.path / "shards").iterdir():
        if folder.name.isdecimal() and int(folder.name) >= job.shards:
            shutil.rmtree(folder)  # of a larger data set that this one replaces
    whole = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    with _writing(job.path):
        write_npz(job.path / "index.npz", **whole)
    return whole
