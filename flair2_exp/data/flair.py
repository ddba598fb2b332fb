"""FLAIR #2 as a data source: the released tree, the toy set, the sample."""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from flair2_exp.config.data import DataConfig, DataGroups
from flair2_exp.data import digests, layout, metadata
from flair2_exp.data.layout import Index
from flair2_exp.data.source import INPUTS, DataSource, Label, Positions, Sample, all_damaged
from flair2_exp.errors import DamagedPatchError, DataError
from flair2_exp.nomenclature import AERIAL_BANDS, flair
from flair2_exp.progress import Progress

if TYPE_CHECKING:
    from flair2_exp.data.check.findings import Finding
    from flair2_exp.data.grids import Grid
    from flair2_exp.data.readers import TreeReader

PATCH_METRES: Final = 102.4
"""Width of a patch, whatever its pixels: 512 of 0.2 m as released."""
_HEADERS: Final = 9
"""Readable headers that settle the size of a patch."""


class FlairSource(DataSource):
    """A FLAIR #2 tree, of which single folders may lie elsewhere (`dataset.aerial_train`, …).

    Args:
        groups: Where it is, and which of its two nomenclatures (`data.classes`).
        reads: The inputs that are read.
    """

    bands = AERIAL_BANDS
    has = frozenset(INPUTS)
    index: Index

    def __init__(self, groups: DataGroups, reads: frozenset[str]) -> None:
        self._groups = groups
        self._reads = reads
        self.index = layout.index(layout.locate(groups.dataset))
        self.nomenclature = flair(groups.data.classes)

    def read(self, patch: int) -> Sample:
        """Read a patch with all bands, as `DataSource.read` says."""
        return self._every_band.read(patch)

    @functools.cached_property
    def _every_band(self) -> TreeReader:
        data = DataConfig(classes=self._groups.data.classes)
        return self.reader(DataGroups(data=data, s2_preproc=self._groups.s2_preproc), self._reads)

    def reader(self, groups: DataGroups, reads: frozenset[str]) -> TreeReader:
        """Return what reads the wanted bands and inputs."""
        from flair2_exp.data.readers import TreeReader

        return TreeReader(self.index, groups, reads, self.patch_size)

    def lacking(self, reads: frozenset[str]) -> Mapping[str, NDArray[np.bool_]]:
        """Return which patches lack a file or an entry, as `DataSource.lacking` says."""
        lacks = self.index.lacking(satellite="satellite" in reads)
        if "metadata" in reads:
            unknown = np.asarray(self.index.metadata["year"] == 0)
            lacks["valid entry in flair_aerial_metadata.json"] = unknown
        return lacks

    def require_sound(self) -> Sequence[Finding]:
        """Check every file's header, as `check.tree.require_sound` says."""
        from flair2_exp.data.check.tree import require_sound

        return require_sound(self._groups, self._reads)

    def check(
        self,
        groups: DataGroups,
        reads: frozenset[str],
        *,
        headers_only: bool = False,
        workers: int = 1,
        report: Progress | None = None,
    ) -> list[Finding]:
        """Check every file that the tree names, as `check.tree.check_tree` says."""
        from flair2_exp.data.check.tree import check_tree

        return check_tree(
            self.index.folders,
            headers_only=headers_only,
            workers=workers,
            super_patch=groups.s2_preproc.size,
            series="satellite" in reads,
            metadata="metadata" in reads,
            report=report,
        )

    def settle(self, patches: Positions, part: str) -> None:
        """Find the patches' size, as most of some headers say: one may be damaged."""
        sides: Counter[int] = Counter()
        damage: DataError | None = None
        for patch in np.random.default_rng(0).permutation(patches).tolist():
            try:
                sides[_side(self.index.image_path(patch))] += 1
            except DataError as error:
                if self._groups.dataset.on_damaged == "stop":
                    raise
                damage = error
            if sides.total() == _HEADERS:
                break
        if damage is not None and not sides:
            raise DataError(all_damaged(part, len(patches), str(damage).splitlines()[0]))
        self.patch_size = sides.most_common(1)[0][0]
        self.resolution = PATCH_METRES / self.patch_size

    def grid(self, patch: int) -> Grid:
        """Return where a patch's pixels lie: its image's grid, since masks may lack a CRS."""
        from flair2_exp.data.grids import Grid

        return Grid.of(self.index.image_path(patch))

    def metadata(self, patches: Positions) -> NDArray[np.float32]:
        """Return the encoded metadata, as `DataSource.metadata` says."""
        records = self.index.metadata[patches]
        return metadata.encode(records, self._groups.metadata.month).astype(np.float32)

    def warn_of_metadata(self, patches: Positions, part: str) -> None:
        """Say how many patches of a part are of a year that has no place in the encoding."""
        years = self.index.metadata["year"][patches]
        unknown = int((~np.isin(years, metadata.YEARS)).sum())
        if unknown:
            warnings.warn(
                f"{unknown} {part} patches are of a year outside 2018 to 2021: their year is "
                "encoded as all zeros",
                stacklevel=4,
            )

    # The prepared store and the fingerprint.

    @property
    def file_names(self) -> Sequence[str]:
        """A patch's files in their order; the last three are its area's."""
        return ("image", "mask", "series data", "series masks", "products")

    @property
    def centroids(self) -> NDArray[np.int32]:
        """Each patch's place in its area's series."""
        return self.index.centroids

    def read_files(self, reads: frozenset[str]) -> NDArray[np.bool_]:
        """Return, (5,), which of a patch's files are read; the mask always is."""
        series = "satellite" in reads
        return np.array(["aerial" in reads, True, series, series, series])

    def files(self, patches: Positions, reads: frozenset[str]) -> digests.Files:
        """Return the files of (n,) patches, those of an area once."""
        index, paths = self.index, [""]
        files = np.zeros((len(patches), len(self.file_names)), dtype=np.int64)
        for column, part in enumerate(("aerial", "labels")):
            if part in reads or part == "labels":
                files[:, column] = len(paths) + np.arange(len(patches))
                paths += index.paths(part, patches)
        if "satellite" in reads:
            areas, which = np.unique(index.area[patches], return_inverse=True)
            files[:, 2:] = len(paths) + 3 * which[:, None] + np.arange(3)
            for area in areas.tolist():
                has_series = index.folders.part("satellite", test=bool(index.area_test[area]))
                paths += map(str, index.series_files(area)) if has_series else ["", "", ""]
        return digests.Files(paths, files)

    def digests(self, patches: Positions, reads: frozenset[str]) -> digests.Digests:
        """Return (n, 5, 16) digests of the patches' files."""
        return digests.digests(self.files(patches, reads), self.index.folders)

    def known(self, patches: Positions, reads: frozenset[str]) -> Sequence[bytes]:
        """Return what the two JSON files say of the patches."""
        index = self.index
        return (
            index.centroids[patches].tobytes() if "satellite" in reads else b"",
            index.metadata[patches].tobytes() if "metadata" in reads else b"",
        )

    def stored_as(self) -> Mapping[str, Any]:
        """Return nothing: one store of a tree serves all bands and both nomenclatures."""
        return {}

    def of_store(self, mask: Label, path: str) -> Label:
        """Turn a store's mask, the tree's own values, into classes."""
        from flair2_exp.data.readers import to_classes

        return to_classes(mask, len(self.nomenclature.classes), path)


def _side(path: Path) -> int:
    """Return the pixels on a side of an image; refuse one that is not FLAIR #2's."""
    from flair2_exp.data.check.tiff import read_header

    try:
        header = read_header(path)
    except (OSError, ValueError) as error:
        raise DamagedPatchError(f"{path} is damaged: {error}.\nDownload it again.") from None
    if header.bands != len(AERIAL_BANDS) or header.height != header.width:
        raise DataError(
            f"{path} has {header.bands} bands of {header.height} x {header.width} pixels; FLAIR #2 "
            f"has {len(AERIAL_BANDS)} square ones.\nSet dataset.root to a FLAIR #2 data set."
        )
    return header.height
