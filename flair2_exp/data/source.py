"""What a data set is to everything else: `DataSource`, of which FLAIR #2's is one.

    dataset._target_=my_study.data.MySource dataset.root=/data/mine dataset.options.year=2021

`open_source` builds the one that a config names and refuses what it does not have. NumPy and the
standard library; what reads pixels is imported when pixels are read.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from flair2_exp.config.data import DataGroups
from flair2_exp.data import digests
from flair2_exp.errors import ConfigError, DamagedPatchError, DataError, nearest
from flair2_exp.nomenclature import Nomenclature
from flair2_exp.progress import Progress
from flair2_exp.registry import construct, written

if TYPE_CHECKING:
    from flair2_exp.data.check.findings import Finding
    from flair2_exp.data.grids import Grid

PARTS: Final = ("train", "validation", "test")

INPUTS: Final = ("aerial", "satellite", "metadata")
"""What a patch may have beside its label."""

Positions = NDArray[np.int64]
Label = NDArray[np.uint8]


@dataclass(frozen=True, eq=False, kw_only=True)
class Patches:
    """The patches of a data set, in an order of their own that never changes. Arrays only.

    A forked worker shares them with its parent.
    """

    ids: NDArray[np.str_]
    """(N,) names, each once."""
    area_names: NDArray[np.str_]
    """(A,) names of areas: patches that lie together. A report resamples areas, or, where the
    names are `DOMAIN/AREA`, domains; splits divide domains (the areas, where there are none)."""
    area: NDArray[np.int32]
    """(N,) position in `area_names`."""
    part: NDArray[np.str_] | None = None
    """(N,) `train`, `validation`, `test`, or empty where the data set leaves that open; None where
    it does for all."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def test(self) -> NDArray[np.bool_]:
        """(N,) whether the data set keeps the patch for the test."""
        fixed = np.zeros(len(self), dtype=np.str_) if self.part is None else self.part
        return np.asarray(fixed == "test")

    @property
    def domains(self) -> NDArray[np.str_]:
        """(N,) names like "D004_2021"."""
        names = [name.partition("/")[0] for name in self.area_names.tolist()]
        return np.array(names, dtype=np.str_)[self.area]

    def name(self, patch: int) -> str:
        """Return the patch's name in a message, like "IMG_000001 of D004_2021/Z1_NN"."""
        return f"{self.ids[patch]} of {self.area_names[self.area[patch]]}"


@dataclass
class Sample:
    """What a network gets of one patch; a modality that is not read is None."""

    label: Label
    """(H, W) uint8 class indices."""
    image: NDArray[Any] | None = None
    """(C, H, W) aerial bands: uint8, uint16 or float32, unscaled."""
    frames: NDArray[Any] | None = None
    """(T, 10, S, S) satellite series: uint16 or, of means, float32; unscaled."""
    days: NDArray[np.int64] | None = None
    """(T,) day offsets."""
    satellite_label: Label | None = None
    """(H, W) target of the satellite head; None where it is `label`."""
    covered: bool = False
    """Whether nothing of the series was clear enough, so that the clearest stands in."""


class Reader(Protocol):
    """Reads the samples of a data set."""

    @property
    def index(self) -> Patches:
        """The data set's patches."""

    def read(self, patch: int) -> Sample:
        """Read the sample of a patch, not augmented.

        Raises:
            DamagedPatchError: A file of the patch cannot be read as what it should be.
        """


class DataSource(ABC):
    """A data set: its patches, what is known of them, and how one is read.

    A source of your own derives from this class, sets the attributes below in its constructor and
    implements `read`; everything else has a default. `dataset._target_` names it. Its constructor
    is given, of these, what it has arguments for: `root` (`dataset.root`, a path or None), `reads`
    (a frozenset of the inputs that the network takes) and `groups` (`config.data.DataGroups`, all
    options of the data). Its other arguments are `dataset.options`, checked by their annotations.

    Attributes:
        index: The patches.
        patch_size: Pixels on a side of every patch.
        nomenclature: The classes of the labels, the scored ones first.
        bands: Names of the images' bands, in the order in which `read` gives them. `red`, `green`
            and `blue` make panels in true colour; `elevation` keeps its values when brightness is
            augmented.
        image_type: Of the images: uint8, uint16 or float32.
        divisor: What images are divided by on the device; None is 255 for uint8, 65535 for uint16
            and 1 for float32.
        resolution: Of the images, metres per pixel; None where it is not known. Maps of larger
            rasters are made at this resolution.
        has: What a patch has beside its label, of `aerial`, `satellite` and `metadata`.
    """

    index: Patches
    patch_size: int
    nomenclature: Nomenclature
    bands: tuple[str, ...] = ()
    image_type: np.dtype[Any] = np.dtype(np.uint8)
    divisor: float | None = None
    resolution: float | None = None
    has: frozenset[str] = frozenset({"aerial"})

    @abstractmethod
    def read(self, patch: int) -> Sample:
        """Read a patch: its label, its image with all bands where it has one, and its series.

        Called in several processes. Series have the ten bands `nomenclature.SATELLITE_BANDS`, and
        as many pixels on a side as `groups.s2_preproc.size` says.

        Args:
            patch: Position in `index`.

        Raises:
            DamagedPatchError: The patch cannot be read; the message names the file.
        """

    def paths(self, patch: int) -> Sequence[Path]:
        """Return the files that a patch is read from, equally many for each patch.

        By their content a run knows its data again. None at all (the default): every patch is read
        for that, once per command.
        """
        return ()

    def grid(self, patch: int) -> Grid | None:
        """Return where a patch's pixels lie; None where that is not known.

        Raises:
            DamagedPatchError: Its file cannot be read.
        """
        return None

    def metadata(self, patches: Positions) -> NDArray[np.float32]:
        """Return (n, 45) float32 numbers about (n,) patches, for a source that has `metadata`."""
        raise NotImplementedError(f"{type(self).__name__} has metadata, and no method of them")

    def lacking(self, reads: frozenset[str]) -> Mapping[str, NDArray[np.bool_]]:
        """Return which patches, (N,), lack something that a run which reads this needs.

        The names are the words of a message, as `mask`. Such a patch stops a run, or is left out
        (`dataset.on_damaged`).
        """
        return {}

    def require_sound(self) -> Sequence[Finding]:
        """Check, before a run, what can be checked without reading every pixel.

        Returns:
            What is wrong and does not stop the run.

        Raises:
            DataError: Something is, and `dataset.on_damaged` is `stop`.
        """
        return ()

    def check(
        self,
        groups: DataGroups,
        reads: frozenset[str],
        *,
        headers_only: bool = False,
        workers: int = 1,
        report: Progress | None = None,
    ) -> list[Finding]:
        """Find all damage, by reading every patch; `check.patches.check_patches` has the words."""
        from flair2_exp.data.check.patches import check_patches

        return check_patches(
            self, groups, reads, headers_only=headers_only, workers=workers, report=report
        )

    # What follows, a source of one's own need not know.

    @property
    def file_names(self) -> Sequence[str]:
        """Names of a patch's files, for messages; fewer than there are where they have none."""
        return ()

    def reader(self, groups: DataGroups, reads: frozenset[str]) -> Reader:
        """Return what reads the samples: the wanted bands and inputs alone."""
        return SourceReader(self, groups, reads)

    def settle(self, patches: Positions, part: str) -> None:  # noqa: B027  most know it
        """Find `patch_size`, where files must be looked at, by the (n,) patches of a part."""

    def files(self, patches: Positions, reads: frozenset[str]) -> digests.Files:
        """Return the files of (n,) patches, each path once."""
        each = [list(map(str, self.paths(patch))) for patch in patches.tolist()]
        counts = {len(paths) for paths in each} or {0}
        if len(counts) > 1:
            raise DataError(
                f"{written(type(self))}: paths gives {min(counts)} to {max(counts)} files of a "
                "patch.\nReturn equally many for each patch; an empty path stands for none."
            )
        every = dict.fromkeys(["", *itertools.chain.from_iterable(each)])
        places = {path: place for place, path in enumerate(every)}
        which = [[places[path] for path in paths] for paths in each]
        return digests.Files(list(every), np.array(which, np.int64).reshape(len(each), *counts))

    def states(self, patches: Positions, reads: frozenset[str]) -> digests.States:
        """Return (n, k, 2) bytes and time of change of the files of (n,) patches; -1 if absent."""
        return digests.states(self.files(patches, reads))

    def digests(self, patches: Positions, reads: frozenset[str]) -> digests.Digests:
        """Return (n, k, 16) digests of the files of (n,) patches, or (n, 1, 16) of their content.

        Zeros where a file is absent, not read or unreadable.
        """
        files = self.files(patches, reads)
        if files.which.size:
            key = [type(self).__module__, type(self).__qualname__, files.paths[1]]
            return digests.digests(files, key)
        rows = [self._content(patch) for patch in patches.tolist()]
        return np.array(rows, np.uint8).reshape(len(rows), 1, digests.DIGEST)

    def _content(self, patch: int) -> list[int]:
        digest = hashlib.blake2b(digest_size=digests.DIGEST)
        try:
            sample = self.read(patch)
        except DamagedPatchError:
            return [0] * digests.DIGEST
        for each in (sample.label, sample.image, sample.frames, sample.days):
            digest.update(b"" if each is None else np.ascontiguousarray(each).tobytes())
        return list(digest.digest())

    @property
    def centroids(self) -> NDArray[np.int32]:
        """(N, 2) where patches lie in their areas' series: a store is anew where that changes."""
        return np.zeros((len(self.index), 2), np.int32)

    def warn_of_metadata(self, patches: Positions, part: str) -> None:  # noqa: B027  most is usual
        """Say what is unusual about the metadata of a part's (n,) patches."""

    def read_files(self, reads: frozenset[str]) -> NDArray[np.bool_]:
        """Return, (1,) or (k,), which of a patch's files a run reads; by default all."""
        return np.ones(1, np.bool_)

    def known(self, patches: Positions, reads: frozenset[str]) -> Sequence[bytes]:
        """Return what is known of (n,) patches beside their files, for the fingerprint."""
        described = [self.nomenclature.plain(), list(self.bands), self.divisor]
        facts = [json.dumps(described, sort_keys=True).encode()]
        if "metadata" in reads:
            facts.append(np.ascontiguousarray(self.metadata(patches), np.float32).tobytes())
        return facts

    def stored_as(self) -> Mapping[str, Any]:
        """Return what a prepared store of these data depends on, by name."""
        return {
            "bands": list(self.bands),
            "image_type": self.image_type.name,
            "classes": list(self.nomenclature.names),
        }

    def of_store(self, mask: Label, path: str) -> Label:
        """Turn a store's mask (class indices, one more; 0 where nothing was read) into classes.

        Raises:
            DamagedPatchError: It holds something else.
        """
        label: Label = np.subtract(mask, np.uint8(1), out=mask)
        if label.max(initial=0) >= len(self.nomenclature.classes):
            raise DamagedPatchError(
                f"{path}: values beyond the {len(self.nomenclature.classes)} classes."
            )
        return label

    def wanted(self, groups: DataGroups) -> list[int]:
        """Return the positions of the wanted bands (`data.bands`) among the source's."""
        names = self.bands if groups.data.bands is None else groups.data.bands
        return [self.bands.index(name) for name in names]

    @property
    def scale(self) -> float:
        """What images are divided by."""
        scales = {"uint8": 255.0, "uint16": 65_535.0}
        return self.divisor or scales.get(self.image_type.name, 1.0)


class SourceReader:
    """Reads the samples of a source as a run wants them, and refuses what they should not be."""

    def __init__(self, source: DataSource, groups: DataGroups, reads: frozenset[str]) -> None:
        self.index = source.index
        self._source = source
        self._reads = reads
        self._wanted = source.wanted(groups)
        self._as_read = self._wanted == list(range(len(source.bands)))

    def read(self, patch: int) -> Sample:
        """Read the sample of a patch, as `Reader.read` says."""
        sample = self._source.read(patch)
        problem = self._problem(sample)
        if problem:
            raise DamagedPatchError(f"{written(type(self._source))}: {problem}.")
        image = sample.image if "aerial" in self._reads else None
        if image is not None and not self._as_read:
            image = image[self._wanted]
        series = "satellite" in self._reads
        return Sample(
            label=sample.label,
            image=image,
            frames=sample.frames if series else None,
            days=sample.days if series else None,
            covered=sample.covered and series,
        )

    def _problem(self, sample: Sample) -> str:
        """Return what a sample is that it should not be; empty where it is well."""
        source = self._source
        side, count = (source.patch_size,) * 2, len(source.nomenclature.classes)
        label = sample.label
        if label.shape != side or label.dtype != np.uint8:
            return f"label {_form(label)} instead of {side} uint8"
        if label.max(initial=0) >= count:
            return f"label holds class {label.max()}, of {count} classes (indices count from 0)"
        if "aerial" in self._reads:
            image, shape = sample.image, (len(source.bands), *side)
            if image is None or image.shape != shape or image.dtype != source.image_type:
                return f"image {_form(image)} instead of {shape} {source.image_type}"
        if "satellite" in self._reads:
            frames, days = sample.frames, sample.days
            if frames is None or days is None or len(days) != len(frames) or not len(frames):
                return f"series {_form(frames)} with days {_form(days)}: expected one day per frame"
        return ""


def _form(array: NDArray[Any] | None) -> str:
    return "missing" if array is None else f"{array.shape} {array.dtype}"


def all_damaged(part: str, count: int, first: str) -> str:
    """Return the message that a part of the split holds nothing that can be read.

    Args:
        part: `train`, `validation` or `test`.
        count: Its patches.
        first: The first of them, or what is wrong with it.
    """
    return (
        f"all {count} {part} patches are damaged or missing; the first is {first}.\n"
        "Run `flair2-exp check` on the data set: dataset.on_damaged=skip leaves none of them."
    )


def open_source(groups: DataGroups, reads: frozenset[str]) -> DataSource:
    """Build the source that a config names.

    Args:
        groups: The data groups of the config.
        reads: What the network reads, of `aerial`, `satellite` and `metadata`.

    Raises:
        ConfigError: There is no such class, it does not take its options, or has no such bands.
        DataError: The data are missing, incomplete, or without what the network reads.
    """
    dataset = groups.dataset
    source = construct(
        DataSource,  # type: ignore[type-abstract]
        dataset._target_,
        "dataset.options",
        target="dataset._target_",
        given={"root": dataset.root, "reads": reads, "groups": groups},
        options=dataset.options,
    )
    _require_whole(source)
    lacking = sorted(reads - source.has, key=INPUTS.index)
    if lacking:
        words = {"aerial": "aerial images", "satellite": "satellite series", "metadata": "metadata"}
        fixes = {
            "aerial": "model=utae",
            "satellite": "model=unet data=aerial_only",
            "metadata": "metadata=off",
        }
        raise DataError(
            f"dataset={dataset.name} ({type(source).__name__}) has no {words[lacking[0]]}, which "
            f"the network reads.\nUse a network that does without, as with {fixes[lacking[0]]}."
        )
    for name in groups.data.bands or ():
        if "aerial" in reads and name not in source.bands:
            raise ConfigError(
                f"data.bands: dataset={dataset.name} has no band {name!r}; "
                f"{nearest(name, list(source.bands))} Omit data.bands for all."
            )
    return source


def _require_whole(source: DataSource) -> None:
    """Refuse a source that is not what `DataSource` says."""
    who = written(type(source))
    for name in ("index", "nomenclature"):
        if not hasattr(source, name):
            raise DataError(f"{who} does not set its attribute {name}.\nSet it in the constructor.")
    index = source.index
    if not len(index):
        raise DataError(f"{who} found no patch.\nCheck dataset.root and dataset.options.")
    names, counts = np.unique(index.ids, return_counts=True)
    if len(names) < len(index):
        raise DataError(
            f"{who}: patch id {names[counts > 1][0]} is there {counts.max()} times.\n"
            "Give each patch an id of its own: results and random numbers go by it."
        )
    if len(index.area) != len(index) or index.area.max() >= len(index.area_names):
        raise DataError(f"{who}: index.area must hold, for each patch, a position in area_names.")
    part = index.part
    if part is not None and not set(np.unique(part).tolist()) <= {*PARTS, ""}:
        raise DataError(f"{who}: index.part holds other words than {', '.join(PARTS)}.")
    if source.has & {"aerial"} and not source.bands:
        raise DataError(f"{who} has images and names no bands.\nSet its attribute bands.")
    if source.image_type not in (np.uint8, np.uint16, np.float32):
        raise DataError(f"{who}: images of {source.image_type}; expected uint8, uint16 or float32.")
    if unknown := source.has - set(INPUTS):
        raise DataError(f"{who}: has={sorted(unknown)}; expected some of {', '.join(INPUTS)}.")
