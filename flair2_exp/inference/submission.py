"""Submissions to the FLAIR #2 challenge: a flat zip with one LZW TIFF of class indices per patch.

PRED_061946.tif    512 x 512, one band of uint8, 0 (building) to 12 (other), no CRS
"""

from __future__ import annotations

import glob
import io
import shutil
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from flair2_exp import locking
from flair2_exp.data.grids import quiet
from flair2_exp.errors import ConfigError, DataError
from flair2_exp.files import replacing
from flair2_exp.inference.patches import SplitPatch
from flair2_exp.inference.predictor import Predictor
from flair2_exp.inference.rasters import require_free, system_errors
from flair2_exp.inference.reading import positions_of
from flair2_exp.inference.split import (
    predict_missing,
    prediction_name,
    remove_leftovers,
)
from flair2_exp.nomenclature import FLAIR_13
from flair2_exp.progress import Progress

PATCHES: Final = 16_050
"""Test patches of FLAIR #2."""
SIZE: Final = 512
"""Pixels on a side of a FLAIR #2 patch."""
TIME_LIMIT: Final = 2.5 * (5 * 60 + 57)
"""Seconds that the challenge allowed for all patches on its organisers' machine: 2.5 times its
baseline's 5:57, which is 14:52."""

_HIGHEST: Final = len(FLAIR_13.classes) - 1
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # the earliest date of a zip: equal predictions, equal bytes
_MOST_FILES: Final = 100_000
_HEADER: Final = 65_536  # bytes beside the pixels that a TIFF may have


@dataclass(frozen=True)
class SubmissionSummary:
    """What `write_submission` made."""

    path: Path
    patches: int
    patch_size: int
    """Pixels on a side."""
    predicted: int
    """By this command; an interrupted one had left the others."""
    seconds: float
    """That the network and reading took for those predicted now."""


@dataclass(frozen=True)
class Finding:
    """What is wrong with a submission."""

    name: str
    """Of the file in the zip; empty for the zip as a whole."""
    problem: str


def write_submission(
    predictor: Predictor,
    out: Path,
    *,
    batch_size: int = 1,
    workers: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> SubmissionSummary:
    """Predict the test part of the run's own data as a submission, which appears whole.

    What an interrupted command has predicted lies in a hidden folder beside `out`, from which the
    same command resumes; equal bytes, however often.

    Args:
        predictor: Of a run, or of several, with FLAIR #2's 13 classes.
        out: The zip.
        batch_size: Patches at once.
        workers: Processes that read.
        overwrite: Whether a file of the name is replaced.
        progress: Is called after each patch with how many are done, and of how many.

    Raises:
        ConfigError: The network has other classes, or `out` is there.
        DataError: A patch cannot be read.
        OSError: The disk is full; the predictions stay for the next start.
    """
    require_free([out], overwrite)
    _require_classes(predictor)
    positions = positions_of(predictor, "test")
    ids = predictor.data[0].index.ids
    parts = out.with_name(f".{out.name}.{predictor.made_from}.parts")
    files = {each: parts / prediction_name(str(ids[each])) for each in positions}
    if len(set(files.values())) < len(files):
        raise DataError("two test patches would have a prediction of the same name.")
    with locking.locked(parts, "name another file with --out"):
        remove_leftovers(parts)
        size = predictor.patch_size
        missing = [each for each, file in files.items() if not _is_prediction(file, size)]

        def write(patch: SplitPatch) -> None:
            _write_prediction(files[patch.patch], patch.prediction.classes)

        seconds = predict_missing(
            predictor, "test", missing, write, total=len(files), workers=workers,
            batch_size=batch_size, progress=progress,
        )  # fmt: skip
        _zip(out, sorted(files.values()))
    for each in out.parent.glob(f".{glob.escape(out.name)}.*.parts"):  # of other networks, too
        with suppress(ConfigError), locking.locked(each):  # unless another process is at work
            shutil.rmtree(each, ignore_errors=True)
    return SubmissionSummary(out, len(files), size, len(missing), seconds)


def _require_classes(predictor: Predictor) -> None:
    names = predictor.nomenclature.names
    if names != FLAIR_13.names:
        raise ConfigError(
            f"{predictor.members[0].stored.name} predicts {len(names)} classes, of other names "
            f"than FLAIR #2's {len(FLAIR_13.names)}: a submission holds those.\nName a run of "
            "dataset=flair2 with data.classes=13."
        )


def _is_prediction(path: Path, size: int) -> bool:
    """Return whether a whole prediction is there."""
    if not path.is_file():
        return False
    try:
        with quiet(), rasterio.open(path, driver="GTiff") as file:
            return bool(file.read().shape == (1, size, size))
    except RasterioError:
        return False


def _write_prediction(path: Path, classes: NDArray[np.uint8]) -> None:
    height, width = classes.shape
    with (
        replacing(path) as fresh,
        system_errors(fresh),
        rasterio.open(
            fresh, "w", driver="GTiff", width=width, height=height, count=1, dtype="uint8",
            compress="LZW",
        ) as file,
    ):  # fmt: skip
        file.write(classes, 1)


def _zip(out: Path, files: Sequence[Path]) -> None:
    with replacing(out) as fresh, zipfile.ZipFile(fresh, "w", zipfile.ZIP_STORED) as archive:
        for file in files:
            entry = zipfile.ZipInfo(file.name, _EPOCH)
            entry.external_attr = 0o644 << 16  # for those who unpack it
            archive.writestr(entry, file.read_bytes())


def check_submission(
    path: Path,
    ids: Sequence[str] | None = None,
    *,
    size: int = SIZE,
    progress: Progress | None = None,
) -> list[Finding]:
    """Find everything that is wrong with a submission; nothing is unpacked to the disk.

    Args:
        path: The zip.
        ids: Of the patches that it must hold, as IMG_061946 or 061946; None: any.
        size: Pixels on a side of each prediction.
        progress: Is called after each file with how many are checked, and of how many.

    Raises:
        DataError: The file is not there, or not a zip.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        reason = "there is no such file" if not path.exists() else f"not a zip ({error})"
        raise DataError(f"{path}: {reason}.\nName a zip of PRED_*.tif.") from None
    with archive:
        entries = archive.infolist()
        if len(entries) > _MOST_FILES:
            return [Finding("", f"{len(entries)} files; expected {PATCHES}")]
        findings = list(_of_names(entries, ids))
        for done, entry in enumerate(entries, start=1):
            problem = _of_entry(entry, size) or _of_content(archive, entry, size)
            if problem:
                findings.append(Finding(entry.filename, problem))
            if progress is not None:
                progress(done, len(entries))
    return findings


def _of_names(entries: Sequence[zipfile.ZipInfo], ids: Sequence[str] | None) -> Iterator[Finding]:
    counts = Counter(entry.filename for entry in entries)
    for name, count in counts.items():
        if count > 1:
            yield Finding(name, f"is there {count} times; expected once")
    if ids is None:
        if not entries:
            yield Finding("", "the zip is empty")
        return
    expected = {prediction_name(each) for each in ids}
    missing = sorted(expected - set(counts))
    if missing:
        more = ", and so on" if len(missing) > 3 else ""
        yield Finding(
            "", f"{len(missing)} of {len(expected)} predictions are missing: "
            f"{', '.join(missing[:3])}{more}",
        )  # fmt: skip
    for name in sorted(set(counts) - expected):
        yield Finding(name, "is not the prediction of a test patch")


def _of_entry(entry: zipfile.ZipInfo, size: int) -> str:
    """Return what is wrong with a file by the zip's list, before anything is read."""
    name, limit = entry.filename, size * size * 2 + _HEADER
    if "/" in name or "\\" in name:
        return "lies in a folder; expected a flat zip"
    if not (name.startswith("PRED_") and name.endswith(".tif")):
        return "expected a name such as PRED_061946.tif"
    if entry.flag_bits & 1:
        return "is encrypted"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is compressed in a way that few programs read; expected stored or deflated"
    if entry.file_size > limit:
        return f"has {entry.file_size:,} bytes, where {limit:,} are more than enough"
    return ""


def _of_content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, size: int) -> str:
    """Return what is wrong with a file by its content, of which a limited length is unpacked."""
    from PIL import UnidentifiedImageError

    try:
        with archive.open(entry) as file:
            content = file.read(size * size * 2 + _HEADER)  # whatever the zip's list says
    except Exception as error:  # zipfile and zlib raise many kinds for damage
        return f"cannot be unpacked ({error})"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about what is refused below
        try:
            return _of_image(content, size)
        except UnidentifiedImageError:
            return "cannot be read as a TIFF"
        except Exception as error:  # Pillow raises whatever a damaged file makes its parser do
            return f"cannot be read as a TIFF ({' '.join(str(error).split())[:100]})"


def _of_image(content: bytes, size: int) -> str:
    """Return what is wrong with a TIFF, its header before its pixels."""
    from PIL import Image

    image: Any
    with Image.open(io.BytesIO(content), formats=["TIFF"]) as image:
        if image.size != (size, size):
            return f"has {image.size[0]} x {image.size[1]} pixels; expected {size} x {size}"
        if image.mode not in ("L", "P") or getattr(image, "n_frames", 1) > 1:
            return f"holds {image.mode} pixels; expected one band of uint8"
        compression = image.info.get("compression")
        if compression != "tiff_lzw":
            return f"is compressed by {compression}; expected tiff_lzw"
        pixels = np.asarray(image)
    above = int((pixels > _HIGHEST).sum())
    if above:
        return (
            f"{above} pixels above {_HIGHEST} (the highest is {pixels.max()}): they vanish from "
            "the official scorer, which counts neither hit nor error"
        )
    return ""


def read_ids(path: Path) -> list[str]:
    """Return the patch ids that a text lists, one per line, as IMG_061946 or PRED_061946.tif.

    Raises:
        DataError: It cannot be read, or lists none.
    """
    try:
        lines = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}).\nName a text of patch ids.") from None
    if not lines:
        raise DataError(f"{path} lists no patch.\nExpected one id per line, as IMG_061946.")
    return [each.removesuffix(".tif").removeprefix("PRED_") for each in lines]
