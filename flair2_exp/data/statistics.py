"""Statistics of the training patches: mean and deviation of each band, pixels of each class.

    statistics.of(data)                     # computed once, then read

They are computed in one pass over the samples of `FlairDataModule.dataset("train")`, not augmented.
Integers are summed exactly and floats by `math.fsum`, so that neither the number of processes nor
the order of the patches moves a digit. They are kept beside the prepared store, else in the user's
cache, under a name that holds what they depend on: the files of the training part, bands,
preprocessing and classes.
"""

from __future__ import annotations

import functools
import json
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from flair2_exp.config.fields import plain
from flair2_exp.data import sentinel2
from flair2_exp.data.cache import cache_folder
from flair2_exp.data.forked import forked
from flair2_exp.data.normalisation import Moments
from flair2_exp.errors import DamagedPatchError, DataError
from flair2_exp.files import write_text
from flair2_exp.locking import file_lock
from flair2_exp.nomenclature import SATELLITE_BANDS
from flair2_exp.progress import Progress
from flair2_exp.values import digest

if TYPE_CHECKING:
    from flair2_exp.data.datamodule import FlairDataModule
    from flair2_exp.data.dataset import PatchDataset
    from flair2_exp.data.source import Sample

log = logging.getLogger(__name__)

FORMAT: Final = 1
"""Raised when the statistics change their form or their rules."""

_CHUNK: Final = 16
"""Patches that a process takes at once."""
_DIED: Final = (
    "a process died while it read the training patches: out of memory, or killed.\n"
    "Give the command again with fewer data.workers."
)


@dataclass(frozen=True)
class Statistics:
    """What the training patches are like.

    Attributes:
        patches: How many were read.
        damaged: How many could not be (`dataset.on_damaged=skip`).
        image: Of the aerial bands in 0..1; None where they are not read.
        series: Of the satellite bands, preprocessed and scaled, without padding; likewise.
        frames: Frames of all series that are not padding.
        pixels: By name of class.
    """

    patches: int
    damaged: int
    image: Moments | None
    series: Moments | None
    frames: int
    pixels: dict[str, int]

    def text(self) -> str:
        """Return the statistics as JSON."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def of_text(cls, text: str) -> Self:
        """Return what `text` gave.

        Raises:
            ValueError: It is something else.
            TypeError: Likewise.
        """
        values = json.loads(text)
        for name in ("image", "series"):
            if values[name] is not None:
                values[name] = Moments(**{key: tuple(v) for key, v in values[name].items()})
        return cls(**values)


@dataclass
class _Sums:
    """Sums over one patch: of the values and squares of each band, and the pixels of each class."""

    pixels: NDArray[np.int64]
    image: NDArray[Any] | None = None
    """(2, C): sums and sums of squares."""
    size: int = 0
    """Pixels of a band."""
    series: NDArray[Any] | None = None
    """(2, 10), likewise."""
    frames: int = 0
    frame_size: int = 0


def of(data: FlairDataModule, *, progress: Progress | None = None) -> Statistics:
    """Return the statistics of a data module's training part, computed where none are kept.

    Processes that ask at the same time wait for the one that computes.

    Args:
        data: After `setup`.
        progress: Follows the computation; None: one line before it.

    Raises:
        DataError: There are no training patches, or one is damaged and `dataset.on_damaged=stop`.
    """
    path = _place(data)
    kept = _read(path)
    if kept is not None:
        return kept
    with _locked(path):
        kept = _read(path)  # another process may have computed them meanwhile
        if kept is not None:
            return kept
        if progress is None:
            count = len(data.dataset("train"))
            log.info("computing the statistics of %d training patches, this once", count)
        computed = compute(data, progress)
        try:
            write_text(path, computed.text())
        except OSError as error:
            log.warning("%s: the statistics are not kept: %s", path, error.strerror)
        return computed


def _place(data: FlairDataModule) -> Path:
    """Return the statistics' file: beside the store where there is one that can be written."""
    groups = data.groups
    series = {"name": "", "normalisation": ""}
    key = digest(
        {
            "format": FORMAT,
            "fingerprint": data.fingerprint_of("train", reads=data.reads - {"metadata"}),
            "reads": sorted(data.reads - {"metadata"}),
            "bands": data.bands if "aerial" in data.reads else None,
            "divisor": data.source.scale,
            "s2_preproc": plain(data.series) | series if data.series else None,
            "classes": list(data.source.nomenclature.names),
            "patch_size": data.patch_size,
        }
    )
    name = f"statistics-{key}.json"
    if groups.dataset.store is not None:
        folder = Path(groups.dataset.store).expanduser() / "statistics"
        try:
            folder.mkdir(exist_ok=True)
        except OSError:
            pass  # a store that only others may write
        else:
            return folder / name
    return cache_folder() / name


def _read(path: Path) -> Statistics | None:
    try:
        return Statistics.of_text(path.read_text("utf-8"))
    except (OSError, ValueError, TypeError, KeyError):
        return None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the computation of a file; where no lock can be made, each process computes it."""
    try:
        lock = file_lock(path.with_suffix(".lock"))
        lock.__enter__()
    except OSError:
        yield
        return
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def compute(data: FlairDataModule, progress: Progress | None = None) -> Statistics:
    """Compute the statistics of a data module's training part, in `data.workers` processes.

    Raises:
        DataError: As `of`.
    """
    dataset = data.dataset("train")
    total = len(dataset)
    each: list[_Sums] = []
    done = 0
    names = data.source.nomenclature.names
    chunks = [range(start, min(start + _CHUNK, total)) for start in range(0, total, _CHUNK)]
    work = functools.partial(_sums_of, dataset, len(names))
    for sums in forked(work, chunks, data.groups.data.workers, died=_DIED):
        done += len(sums)
        each += [one for one in sums if one is not None]
        if progress is not None:
            progress(done, total)
    if not each:
        raise DataError(
            f"no statistics: none of {total} training patches can be read.\n"
            "Use a split with training patches, or run `flair2-exp check` on the data set."
        )
    pixels = np.sum([one.pixels for one in each], axis=0)
    image = series = None
    if each[0].image is not None:
        # Scaled as `FlairDataModule.on_after_batch_transfer` does.
        sizes = [one.size for one in each]
        image = _moments(data.bands, [one.image for one in each], sizes, data.source.scale)
    frames = sum(one.frames for one in each)
    if data.series is not None and frames:
        counts = [one.frames * one.frame_size for one in each]
        series = _moments(
            SATELLITE_BANDS,
            [one.series for one in each],
            counts,
            sentinel2.divisor(data.series),
        )
    return Statistics(
        patches=len(each),
        damaged=total - len(each),
        image=image,
        series=series,
        frames=frames,
        pixels=dict(zip(names, pixels.tolist(), strict=True)),
    )


def _moments(bands: tuple[str, ...], sums: list[Any], counts: list[int], divisor: float) -> Moments:
    """Return mean and standard deviation from the sums (2, C) of all patches."""
    count = sum(counts)
    columns = np.stack([each for each in sums if each is not None])  # (n, 2, C)
    totals = [[math.fsum(row) for row in columns[:, at].T.tolist()] for at in (0, 1)]
    mean = [total / count for total in totals[0]]
    variance = [
        max(0.0, squares / count - one * one) for squares, one in zip(totals[1], mean, strict=True)
    ]
    return Moments(
        tuple(bands),
        tuple(one / divisor for one in mean),
        tuple(math.sqrt(one) / divisor for one in variance),
    )


def _sums_of(dataset: PatchDataset, classes: int, positions: range) -> list[_Sums | None]:
    """Return the sums of a chunk of patches; None for a damaged one that may be skipped."""
    return [_one(dataset, classes, int(dataset.patches[position])) for position in positions]


def _one(dataset: PatchDataset, classes: int, patch: int) -> _Sums | None:
    try:
        return _sums(dataset.reader.read(patch), classes)
    except DamagedPatchError as error:
        if dataset.on_damaged == "skip":
            return None
        raise DamagedPatchError(
            f"patch {dataset.index.ids[patch]} is damaged: {error}\n"
            "Run `flair2-exp check` on the data set, or set dataset.on_damaged=skip."
        ) from None


def _sums(sample: Sample, classes: int) -> _Sums:
    """Return the sums over one sample."""
    result = _Sums(np.bincount(sample.label.ravel(), minlength=classes).astype(np.int64))
    if sample.image is not None:
        result.size = int(np.prod(sample.image.shape[1:]))
        result.image = np.stack([_band_sums(band) for band in sample.image], axis=1)
    if sample.frames is not None:
        frames = sample.frames[sample.frames.any(axis=(1, 2, 3))].astype(np.float64)
        result.frames, result.frame_size = len(frames), int(np.prod(frames.shape[2:]))
        result.series = np.stack([frames.sum(axis=(0, 2, 3)), (frames**2).sum(axis=(0, 2, 3))])
    return result


def _band_sums(band: NDArray[Any]) -> NDArray[np.float64]:
    """Return the sum of a band's values and of their squares; exact for integers below 2^26."""
    if band.dtype == np.uint8:
        counts = np.bincount(band.ravel(), minlength=256)
        values = np.arange(256)
        return np.array([counts @ values, counts @ values**2], dtype=np.float64)
    whole = band.astype(np.float64)
    return np.array([whole.sum(), (whole**2).sum()])


def class_weights(kind: str, pixels: dict[str, int], counted: set[str]) -> dict[str, float]:
    """Return weights of classes by their frequency, 1 on average over the classes that count.

    With p the share of a class among the pixels of the classes that count:

    - `inverse`: 1 / p (King and Zeng, 2001; "balanced" in scikit-learn);
    - `sqrt_inverse`: 1 / sqrt(p), milder (Mahajan et al., 2018, for sampling);
    - `log`: 1 / ln(1.02 + p), bounded by 50 to 1 (ENet; Paszke et al., 2016).

    The effective number of samples (Cui et al., 2019) is not among them: with millions of pixels
    in a class it is the same for all of them.

    Args:
        kind: One of these.
        pixels: By name of class.
        counted: The names of the classes that count. One of them without pixels gets the largest
            weight of the others.

    Returns:
        Weights by name; 1 for the classes that do not count.
    """
    present = {name: n for name, n in pixels.items() if n and name in counted}
    total = sum(present.values())
    formula: Callable[[float], float] = {
        "inverse": lambda p: 1 / p,
        "sqrt_inverse": lambda p: 1 / math.sqrt(p),
        "log": lambda p: 1 / math.log(1.02 + p),
    }[kind]
    raw = {name: formula(n / total) for name, n in present.items()}
    largest = max(raw.values(), default=1.0)
    raw = {name: raw.get(name, largest) for name in pixels if name in counted}
    mean = sum(raw.values()) / max(1, len(raw))
    return {name: raw[name] / mean if name in raw else 1.0 for name in pixels}
