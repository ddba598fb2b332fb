"""Where the files of a FLAIR #2 tree are, and an index of its patches in compact arrays.

The released tree and the toy set have different folder names; `locate` knows both and takes each
folder by itself as well. `index` lists a tree once and keeps the result in the user's cache
directory, keyed by the state of every directory it listed, so that a run on all 77,762 patches
starts at once and a changed tree is listed anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flair2_exp.config.data import DatasetConfig
from flair2_exp.data.arrays import read_npz, write_npz
from flair2_exp.data.metadata import RECORD, parse_record
from flair2_exp.errors import DataError

FOLDER_NAMES: Final[dict[str, tuple[str, ...]]] = {
    "aerial_train": ("flair_aerial_train", "flair_2_toy_aerial_train"),
    "aerial_test": ("flair_2_aerial_test", "flair_2_toy_aerial_test"),
    "labels_train": ("flair_labels_train", "flair_2_toy_labels_train"),
    "labels_test": ("flair_2_labels_test", "flair_2_toy_labels_test"),
    "satellite_train": ("flair_sen_train", "flair_2_toy_sen_train"),
    "satellite_test": ("flair_2_sen_test", "flair_2_toy_sen_test"),
    "centroids": ("flair-2_centroids_sp_to_patch.json",),
    "aerial_metadata": (
        "flair_aerial_metadata.json",
        "flair-2_aerial_metadata.json",
        "flair_2_aerial_metadata.json",
    ),
}
"""For each part, by its option in the group `dataset`: its released name, then the toy set's."""

TOY_FOLDER: Final = "flair_2_toy_dataset"
"""The toy set's archive unpacks its images into this folder; its JSON files lie there or beside."""

DOMAIN: Final = re.compile(r"D(\d{3})_\d{4}")
AREA: Final = re.compile(r"Z\d+_\w+")
IMAGE: Final = re.compile(r"IMG_\d+\.tif")

FRESH_NS: Final = 2_000_000_000
"""A file can change twice within one tick of the file system's clock, so a state as young as this
proves nothing. 2 s is the coarsest clock in use (FAT)."""

_FORMAT: Final = 3
"""Raised when the cached index changes its form or its rules."""


class Folders(dict[str, Path]):
    """Where each part of a data set is, by its name in `FOLDER_NAMES`; what it lacks is absent."""

    def part(self, name: str, *, test: bool) -> Path | None:
        """Return the folder `aerial`, `labels` or `satellite` of the train or of the test tree."""
        return self.get(f"{name}_{'test' if test else 'train'}")


class SeriesFiles(NamedTuple):
    """The three files of an area's satellite series."""

    data: Path
    masks: Path
    products: Path


def locate(dataset: DatasetConfig) -> Folders:
    """Find the parts of a data set under `dataset.root`, or where its other options say.

    Returns:
        The parts that exist; the absent ones are missed only by a run that needs them.

    Raises:
        DataError: Nothing is given; a given path does not exist; the root is empty or holds none of
            the names of FLAIR #2; there are no aerial images.
    """
    root = dataset.root
    folders = _search(Path(root).expanduser()) if root is not None else Folders()
    for name in FOLDER_NAMES:
        value = getattr(dataset, name)
        if value is not None:
            folders[name] = _existing(Path(value).expanduser(), name)
    if not folders and root is None:
        raise DataError(
            "no data set is given: dataset.root is empty.\n"
            "Set dataset.root to the folder that holds flair_aerial_train and its neighbours, "
            "or use dataset=sample."
        )
    if "aerial_train" not in folders and "aerial_test" not in folders:
        raise DataError(
            f"no aerial images in {root or 'the given folders'}: expected flair_aerial_train or "
            "flair_2_aerial_test.\nUnpack them there, or set dataset.aerial_train."
        )
    return folders


def _is_there(path: Path, name: str) -> bool:
    return path.is_file() if FOLDER_NAMES[name][0].endswith(".json") else path.is_dir()


def _existing(path: Path, name: str) -> Path:
    """Return `path`, resolved; a DataError where it is not there or not of the right kind."""
    if _is_there(path, name):
        return path.resolve()
    released = FOLDER_NAMES[name][0]
    kind = "JSON file" if released.endswith(".json") else "folder"
    raise DataError(
        f"dataset.{name}={path} is not a {kind}.\n"
        f"Set it to the {kind} called {released} in the released data set."
    )


def _search(root: Path) -> Folders:
    """Find the parts under `root` by their released or toy names."""
    if not root.is_dir():
        raise DataError(
            f"dataset.root={root} is not a folder.\nSet it to the folder that holds "
            "flair_aerial_train and its neighbours, or use dataset=sample."
        )
    inside = sorted(entry.name for entry in os.scandir(root))
    if not inside:
        raise DataError(
            f"dataset.root={root} is empty.\nUnpack FLAIR #2 there, or use dataset=sample."
        )
    folders = Folders()
    whole = root.resolve()
    for name, candidates in FOLDER_NAMES.items():
        places = [root, root / TOY_FOLDER]
        if candidates[0].endswith(".json") and whole.name == TOY_FOLDER:
            places.append(whole.parent)
        for path in (place / candidate for place in places for candidate in candidates):
            if name not in folders and _is_there(path, name):
                folders[name] = path.resolve()
    if not folders:
        some = ", ".join(inside[:4]) + (", …" if len(inside) > 4 else "")
        raise DataError(
            f"dataset.root={root} holds no FLAIR #2 tree but {some}; expected flair_aerial_train, "
            "flair_labels_train, …\nSet dataset.root to the folder right above those."
        )
    return folders


@dataclass(frozen=True, eq=False)
class Index:
    """All patches of a data set, in the order (tree: train, test; domain; area; id).

    Arrays only, some 15 MB for the whole of FLAIR #2: a forked worker shares them with its parent.
    """

    folders: Folders
    area_names: NDArray[np.str_]
    """(A,) names like "D004_2021/Z1_NN"."""
    area_test: NDArray[np.bool_]
    """(A,) whether the area lies in the test tree."""
    area_series: NDArray[np.bool_]
    """(A,) whether the area has its folder of satellite series."""
    ids: NDArray[np.str_]
    """(N,) names like "IMG_000001"."""
    area: NDArray[np.int32]
    """(N,) position in `area_names`."""
    labelled: NDArray[np.bool_]
    """(N,) whether the patch has a mask."""
    centroids: NDArray[np.int32]
    """(N, 2) row and column of the patch's centre in its area's series; -1 where unknown."""
    metadata: NDArray[np.void]
    """(N,) of dtype `metadata.RECORD`; year 0 where unknown."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def test(self) -> NDArray[np.bool_]:
        """(N,) whether the patch lies in the test tree."""
        return self.area_test[self.area]

    @property
    def domains(self) -> NDArray[np.str_]:
        """(N,) names like "D004_2021"."""
        names = [name.partition("/")[0] for name in self.area_names.tolist()]
        return np.array(names, dtype=np.str_)[self.area]

    def name(self, patch: int) -> str:
        """Return the patch's name in a message, like "IMG_000001 of D004_2021/Z1_NN"."""
        return f"{self.ids[patch]} of {self.area_names[self.area[patch]]}"

    def image_path(self, patch: int) -> Path:
        """Return the patch's aerial image."""
        return self._base("aerial", int(self.area[patch])) / "img" / f"{self.ids[patch]}.tif"

    def mask_path(self, patch: int) -> Path:
        """Return the patch's mask of labels."""
        name = f"MSK{str(self.ids[patch])[3:]}.tif"
        return self._base("labels", int(self.area[patch])) / "msk" / name

    def paths(self, part: str, patches: NDArray[np.int64]) -> list[str]:
        """Return the images (`aerial`) or masks (`labels`) of many patches at once.

        A path is empty where the data set lacks the whole part.
        """
        areas = self.area[patches]
        leaf = "img/IMG" if part == "aerial" else "msk/MSK"
        bases = {}
        for area in np.unique(areas).tolist():
            folder = self.folders.part(part, test=bool(self.area_test[area]))
            bases[area] = f"{folder}/{self.area_names[area]}/{leaf}" if folder else ""
        names = zip(areas.tolist(), self.ids[patches].tolist(), strict=True)
        return [f"{bases[area]}{name[3:]}.tif" if bases[area] else "" for area, name in names]

    def lacking(self, *, satellite: bool) -> dict[str, NDArray[np.bool_]]:
        """Return which patches, (N,), lack what they need to be trained on or scored.

        The names are the words of a message; with `satellite` they need their area's series, too.
        """
        lacks: dict[str, NDArray[np.bool_]] = {"mask (MSK_*.tif)": ~self.labelled}
        if satellite:
            lacks["satellite series (sen folder)"] = ~self.area_series[self.area]
            unknown = np.any(self.centroids < 0, axis=1)
            lacks["centroid in flair-2_centroids_sp_to_patch.json"] = np.asarray(unknown)
        return lacks

    def series_files(self, area: int) -> SeriesFiles:
        """Return the files of an area's satellite series."""
        folder = self._base("satellite", area) / "sen"
        stem = f"SEN2_sp_{str(self.area_names[area]).replace('/', '-')}_"
        leaves = ("data.npy", "masks.npy", "products.txt")
        return SeriesFiles(*(folder / f"{stem}{leaf}" for leaf in leaves))

    def _base(self, part: str, area: int) -> Path:
        folder = self.folders.part(part, test=bool(self.area_test[area]))
        if folder is None:
            side = "test" if self.area_test[area] else "train"
            raise DataError(
                f"the data set has no {part} folder for its {side} tree.\n"
                f"Set dataset.{part}_{side}, or choose an experiment that does not need it."
            )
        return folder / str(self.area_names[area])


INDEX_ARRAYS: Final = tuple(each.name for each in fields(Index) if each.name != "folders")


def index(folders: Folders) -> Index:
    """List the patches of a data set, sorted.

    The result is kept in `cache_file` together with the `State` of every listed directory and JSON
    file. It is used again only while all of them are unchanged: a file or folder that is added,
    removed or renamed changes its directory. Nothing about the files' contents is kept.

    Raises:
        DataError: There is no patch at all, or a JSON file is not one. An entry of it that is
            absent or malformed is not an error but marked, as `Index` says.
    """
    path = cache_file(folders, "index")
    kept = read_npz(path)
    if kept is not None:
        states = [state_of(name) for name in kept.pop("listed").tolist()]
        if np.array_equal(kept.pop("states"), states):
            return Index(folders, **kept)
    listed: dict[str, State] = {}
    built = _build(folders, listed)
    newest = max(max(state.changed, state.touched) for state in listed.values())
    if time.time_ns() - newest >= FRESH_NS:
        with contextlib.suppress(OSError):  # a cache that cannot be written
            write_npz(
                path,
                listed=np.array(list(listed)),
                states=np.array(list(listed.values())),
                **{name: getattr(built, name) for name in INDEX_ARRAYS},
            )
    return built


class State(NamedTuple):
    """What changes when a file's content or a directory's entries do; -1 where there is none."""

    inode: int = -1
    size: int = -1
    changed: int = -1
    """Nanoseconds; of the content, and can be set back."""
    touched: int = -1
    """Nanoseconds; of anything about the file (ctime), and cannot be set."""


def state_of(path: str | Path) -> State:
    """Look a file or directory up."""
    try:
        status = os.stat(path)
    except OSError:
        return State()
    inode = status.st_ino & 0x7FFF_FFFF_FFFF_FFFF  # some file systems use all 64 bits
    return State(inode, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _scan(path: str, listed: dict[str, State]) -> list[str]:
    """List a directory, sorted; its state is noted before it is read."""
    listed[path] = state_of(path)
    try:
        return sorted(entry.name for entry in os.scandir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _areas(folder: Path | None, listed: dict[str, State]) -> Iterator[str]:
    """Return the areas under one of the tree's folders, sorted."""
    if folder is None:
        return
    for domain in _scan(str(folder), listed):
        if DOMAIN.fullmatch(domain):
            for area in _scan(f"{folder}/{domain}", listed):
                if AREA.fullmatch(area):
                    yield f"{domain}/{area}"


def _build(folders: Folders, listed: dict[str, State]) -> Index:
    """List the tree; `listed` receives the state of every directory and JSON file."""
    areas: list[tuple[str, bool, bool]] = []
    patches: list[tuple[str, int, bool]] = []
    for test in (False, True):
        aerial = folders.part("aerial", test=test)
        labels = folders.part("labels", test=test)
        series = set(_areas(folders.part("satellite", test=test), listed))
        for name in _areas(aerial, listed):
            _scan(f"{aerial}/{name}", listed)
            images = [n[:-4] for n in _scan(f"{aerial}/{name}/img", listed) if IMAGE.fullmatch(n)]
            masks = set(_scan(f"{labels}/{name}/msk", listed)) if labels else set()
            patches += [(each, len(areas), f"MSK{each[3:]}.tif" in masks) for each in images]
            areas.append((name, test, name in series))
    if not patches:
        raise DataError(
            f"no IMG_*.tif under {folders.get('aerial_train') or folders.get('aerial_test')}; "
            "expected D004_2021/Z1_NN/img/IMG_000001.tif and so on.\n"
            "Set dataset.root to an unpacked data set."
        )
    area_names, area_test, area_series = zip(*areas, strict=True)
    ids, area, labelled = zip(*patches, strict=True)
    return Index(
        folders=folders,
        area_names=np.array(area_names),
        area_test=np.array(area_test),
        area_series=np.array(area_series),
        ids=np.array(ids),
        area=np.array(area, dtype=np.int32),
        labelled=np.array(labelled),
        centroids=_centroids(_json(folders.get("centroids"), listed), ids),
        metadata=_metadata(_json(folders.get("aerial_metadata"), listed), ids),
    )


def _json(path: Path | None, listed: dict[str, State]) -> dict[str, Any]:
    """Read a JSON object; an empty one where there is no file."""
    if path is None:
        return {}
    try:
        listed[str(path)] = state_of(path)
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}.\nDownload it again.") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no JSON object by patch.\nDownload it again.")
    return content


def parse_centroid(value: object) -> tuple[int, int] | None:
    """Return row and column of a centroid's entry; None where it is not two whole numbers."""
    if not (isinstance(value, list) and len(value) == 2 and all(map(_whole, value))):
        return None
    return int(value[0]), int(value[1])


def _whole(value: object) -> bool:
    if isinstance(value, float):
        return value.is_integer()  # which neither inf nor nan is
    return isinstance(value, int) and not isinstance(value, bool)


def _centroids(content: dict[str, Any], ids: Sequence[str]) -> NDArray[np.int32]:
    """Return (N, 2) row and column by patch, -1 where the file lacks it or holds something else."""
    centroids = np.full((len(ids), 2), -1, dtype=np.int32)
    for position, name in enumerate(ids):
        place = parse_centroid(content.get(f"{name}.tif"))
        if place is not None:
            with contextlib.suppress(OverflowError):  # a number of hundreds of digits
                centroids[position] = place
    return centroids


def _metadata(content: dict[str, Any], ids: Sequence[str]) -> NDArray[np.void]:
    """Return (N,) metadata by patch, year 0 where the file lacks it or it is malformed."""
    records = np.zeros(len(ids), dtype=RECORD)
    for position, name in enumerate(ids):
        # OverflowError: a number of hundreds of digits
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            records[position] = parse_record(content.get(name))
    return records


def cache_file(folders: Folders, kind: str) -> Path:
    """Return where a kind of thing about these folders, such as `index`, is kept for the user."""
    key = json.dumps([_FORMAT, folders], default=str, sort_keys=True)
    name = hashlib.sha256(key.encode()).hexdigest()[:24]
    return cache_folder() / f"{kind}-{name}.npz"


def cache_folder() -> Path:
    """Return the folder in which things about data sets are kept for the user."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "flair2_exp"
