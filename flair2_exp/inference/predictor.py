"""Predictions of one trained network, or of several together, from arrays as files hold them.

    predictor = Predictor.from_run("outputs/demo/TIME")
    prediction = predictor.predict(image)                 # (5, 512, 512) uint8
    prediction.classes, prediction.confidence             # (512, 512) class indices, 0..1

Scaling, normalisation, the order of bands, the preprocessing of series and the encoding of metadata
are those of the run's training.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flair2_exp import __version__
from flair2_exp.config.relevance import scores_by_batches
from flair2_exp.data import sentinel2
from flair2_exp.data.dataset import pad_series
from flair2_exp.data.inputs import Inputs
from flair2_exp.data.normalisation import Normalisation, scaled
from flair2_exp.errors import ConfigError, DataError, DeviceError, UsageError, nearest
from flair2_exp.inference.patches import Acquisitions, Prediction, SplitPatch, Tile
from flair2_exp.inference.reading import read_split
from flair2_exp.inference.stored import StoredRun
from flair2_exp.nomenclature import METADATA_VALUES, SATELLITE_BANDS, Nomenclature
from flair2_exp.training.test_time import SYMMETRIES, one_by_one
from flair2_exp.values import digest

if TYPE_CHECKING:
    from flair2_exp.config.data import S2PreprocConfig
    from flair2_exp.data.datamodule import FlairDataModule
    from flair2_exp.inference.mapping import MapOptions, MapSummary
    from flair2_exp.training.task import SegmentationTask

Batch = Mapping[str, Tensor]
"""A network's inputs by the names of its arguments, not scaled, and `label` for its shape."""
Days = NDArray[np.int64] | NDArray[np.datetime64]


class Member:
    """One trained network of a predictor.

    Attributes:
        stored: Where it comes from.
        task: The network, in evaluation, on the predictor's device.
        inputs: What it reads, before scaling.
        normalisation: By what its scaled inputs are normalised.
    """

    def __init__(self, stored: StoredRun, device: torch.device) -> None:
        """Load it; raises as `StoredRun.load`."""
        self.stored = stored
        task, content = stored.load()
        self.task: SegmentationTask = task.to(device)
        options = content["hyper_parameters"]
        if not options.get("inputs"):
            raise ConfigError(
                f"{stored.checkpoint} was written by a version that did not keep how images were "
                "scaled.\nTest it once more with train=false checkpoint=PATH, and use that run."
            )
        self.inputs = Inputs.of_plain(options["inputs"])
        self.normalisation = Normalisation.of_plain(options.get("normalisation"))

    @property
    def reads(self) -> frozenset[str]:
        """Its inputs, of `aerial`, `satellite`, `metadata`."""
        return self.task.spec.reads

    def batch(self, tiles: Sequence[Tile], bands: Sequence[str], size: int) -> dict[str, Any]:
        """Return tiles as one batch, not scaled, of what this network reads."""
        label = torch.zeros(len(tiles), size, size, dtype=torch.uint8)  # for its shape
        batch: dict[str, Any] = {"label": label}
        if "aerial" in self.reads:
            order = [list(bands).index(name) for name in self.inputs.bands]
            images = [tile.image for tile in tiles if tile.image is not None]
            batch["image"] = torch.from_numpy(np.stack([image[order] for image in images]))
        if "satellite" in self.reads:
            each = [_preprocessed(tile, self.inputs.s2_preproc) for tile in tiles]
            series = [(one.frames, one.days) for one in each]
            parts = pad_series(series, lambda shape, kind: torch.from_numpy(np.empty(shape, kind)))
            batch |= zip(("series", "days", "padding"), parts, strict=True)
        if "metadata" in self.reads:
            values = [tile.metadata for tile in tiles if tile.metadata is not None]
            batch["metadata"] = torch.from_numpy(np.stack(values))
        return batch

    @torch.inference_mode()
    def logits(self, batch: Mapping[str, Any], device: torch.device) -> Tensor:
        """Return the scored head's float32 logits, (B, C, H, W), of a batch that is not scaled.

        Where a quirk looks at the whole batch the patches go one by one, as the published
        evaluation has them.
        """
        moved = {name: each.to(device, non_blocking=True) for name, each in batch.items()}
        divisor = sentinel2.divisor(self.inputs.s2_preproc)
        ready = self.normalisation.applied(scaled(moved, image=self.inputs.scale, series=divisor))
        parts = list(one_by_one(ready)) if scores_by_batches(self.task.spec) else [ready]
        outputs = [self.task.evaluate(part)[self.task.main_head] for part in parts]
        return torch.cat(outputs).float()


def _preprocessed(tile: Tile, options: S2PreprocConfig) -> sentinel2.Series:
    assert tile.series is not None, "the predictor requires it"
    if isinstance(tile.series, Acquisitions):
        return tile.series.preprocessed(options)
    return tile.series


class Predictor:
    """One trained network, or several whose probabilities are averaged.

    Attributes:
        members: The networks.
        weights: Of each, summing to 1.
        symmetries: Of test-time augmentation (`training.test_time.SYMMETRIES`).
        device: Where the networks are.
        bands: Of an image, in the order in which `predict` takes them.
        patch_size: Pixels on a side of what is predicted at once.
        nomenclature: The classes.
    """

    def __init__(
        self,
        runs: Sequence[StoredRun],
        *,
        weights: Sequence[float] | None = None,
        symmetries: str = "none",
        device: str = "auto",
    ) -> None:
        """Load the networks of runs; `weights` are equal unless given.

        Raises:
            FlairError: A network cannot be loaded, or they do not go together.
        """
        if symmetries not in SYMMETRIES:
            raise UsageError(f"tta={symmetries}: expected one of {', '.join(SYMMETRIES)}.")
        self.device = device_of(device)
        self.symmetries = symmetries
        self.weights = _weights(weights, len(runs))
        self.members = tuple(Member(run, self.device) for run in runs)
        for member in self.members:
            member.task.symmetries = symmetries
        first = self.members[0]
        self.nomenclature: Nomenclature = first.task.nomenclature
        self.patch_size: int = first.task.spec.patch_size
        self._require_alike()
        # In the first reader's order; what further members read beside them comes after.
        named = [name for each in self.members if "aerial" in each.reads
                 for name in each.inputs.bands]  # fmt: skip
        self.bands = tuple(dict.fromkeys(named))

    @classmethod
    def from_run(
        cls,
        run: str | os.PathLike[str],
        *,
        tta: str = "none",
        device: str = "auto",
        tracking_uri: str = "",
    ) -> Self:
        """Return the predictor of a run.

        Args:
            run: Its folder, its checkpoint, or the id of its MLflow run.
            tta: `none`, `flips` or `d4`: in which symmetries each patch is predicted.
            device: `auto`, `cpu`, `cuda` or `cuda:1`.
            tracking_uri: Of the MLflow store that knows the id; empty is the local one.

        Raises:
            FlairError: There is no such run, or its network cannot be loaded.
        """
        stored = StoredRun.find(os.fspath(run), tracking_uri)
        return cls([stored], symmetries=tta, device=device)

    @classmethod
    def from_runs(
        cls,
        runs: Sequence[str | os.PathLike[str]],
        *,
        weights: Sequence[float] | None = None,
        tta: str = "none",
        device: str = "auto",
        tracking_uri: str = "",
    ) -> Self:
        """Return the predictor of an ensemble: the weighted mean of the runs' probabilities.

        Args:
            runs: As `from_run` takes them; they may read different inputs of one patch.
            weights: One of each, positive; None: equal.
            tta: As for `from_run`.
            device: As for `from_run`.
            tracking_uri: As for `from_run`.

        Raises:
            FlairError: As by `from_run`; or their classes or patch sizes differ.
        """
        stored = [StoredRun.find(os.fspath(run), tracking_uri) for run in runs]
        return cls(stored, weights=weights, symmetries=tta, device=device)

    def _require_alike(self) -> None:
        first = self.members[0]
        for other in self.members[1:]:
            kinds: dict[str, list[Any]] = {
                "classes": [list(each.task.nomenclature.names) for each in (first, other)],
                "patches": [each.task.spec.patch_size for each in (first, other)],
                "resolutions": [each.inputs.resolution for each in (first, other)],
                "pixel types": [
                    (each.inputs.image_type, each.inputs.scale)
                    if {"aerial"} <= first.reads & other.reads
                    else None
                    for each in (first, other)
                ],
            }
            for what, values in kinds.items():
                if values[0] != values[1]:
                    raise ConfigError(
                        f"an ensemble of networks with different {what}: {first.stored.name} "
                        f"{values[0]}, {other.stored.name} {values[1]}.\nEnsembles are of networks "
                        "for the same patches and classes."
                    )

    @property
    def reads(self) -> frozenset[str]:
        """All inputs of the networks, of `aerial`, `satellite`, `metadata`."""
        return frozenset().union(*(each.reads for each in self.members))

    @property
    def image_type(self) -> np.dtype[Any]:
        """Of images."""
        return self._images.kind

    @property
    def resolution(self) -> float | None:
        """Of images, metres per pixel; None where the run does not know it."""
        return self._images.resolution

    @property
    def _images(self) -> Inputs:
        readers = [each for each in self.members if "aerial" in each.reads]
        return (readers or self.members)[0].inputs

    @property
    def series_sizes(self) -> frozenset[int]:
        """Pixels (10 m) on a side of the series that the networks read; empty without series."""
        return frozenset(each.inputs.s2_preproc.size for each in self.members
                         if "satellite" in each.reads)  # fmt: skip

    def predict(
        self,
        image: NDArray[Any] | None = None,
        series: NDArray[np.uint16] | NDArray[np.float32] | None = None,
        days: Days | None = None,
        metadata: NDArray[np.float32] | None = None,
        *,
        probabilities: NDArray[np.uint8] | None = None,
    ) -> Prediction:
        """Predict one patch, from arrays in the files' own types.

        Args:
            image: (C, H, W) of `bands`, H = W = `patch_size`, of `image_type`, not scaled.
            series: (T, 10, S, S). With dates: acquisitions, uint16 reflectance × 10,000, which are
                filtered and averaged as the run was trained. With offsets: as the network reads
                them, preprocessed but not scaled (uint16, or float32 of monthly means).
            days: (T,) of the series: datetime64 dates, or int64 days to 15 May.
            metadata: (45,) as `data.metadata.encode` gives them.
            probabilities: (T, 2, S, S) snow and cloud of acquisitions, per cent, for a run that
                filters by them.

        Raises:
            DataError: Something that the network reads is missing or of another shape or type.
        """
        tile = Tile(image, _series(series, days, probabilities), metadata)
        return next(self.predictions(self.batches([tile])))

    def batches(self, tiles: Sequence[Tile]) -> list[Batch]:
        """Return tiles as one batch for each member, of what it reads.

        Raises:
            DataError: As by `predict`.
        """
        for tile in tiles:
            self.require(tile)
        return [member.batch(tiles, self.bands, self.patch_size) for member in self.members]

    def probabilities(self, batches: Sequence[Batch]) -> Tensor:
        """Return the mean of the members' probabilities, (B, C, H, W) float32, on the device.

        Args:
            batches: One for each member, of the same patches, not scaled.
        """
        return self._combined(batches)[0]

    def predictions(self, batches: Sequence[Batch]) -> Iterator[Prediction]:
        """Yield the prediction of each patch of some batches, one for each member."""
        probabilities, classes = (each.cpu().numpy() for each in self._combined(batches))
        for each, classified in zip(probabilities, classes, strict=True):
            yield Prediction(classified, each, self.nomenclature)

    def _combined(self, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
        """Return probabilities (B, C, H, W) and classes (B, H, W) uint8.

        A single network's classes are those of its logits, as in its test: as probabilities, two
        logits may round to one number.
        """
        logits = [
            member.logits(batch, self.device)
            for member, batch in zip(self.members, batches, strict=True)
        ]
        if len(logits) == 1:
            return logits[0].softmax(dim=1), logits[0].argmax(dim=1).to(torch.uint8)
        weighted = zip(logits, self.weights, strict=True)
        mean = torch.stack([each.softmax(dim=1) * weight for each, weight in weighted]).sum(dim=0)
        return mean, mean.argmax(dim=1).to(torch.uint8)

    def require(self, tile: Tile) -> None:
        """Refuse a tile that lacks something or is of another shape or type.

        Raises:
            DataError: The message says what is expected.
        """
        size, image = self.patch_size, tile.image
        if "aerial" in self.reads:
            wanted = (len(self.bands), size, size)
            form = None if image is None else (image.shape, image.dtype)
            if form != (wanted, self.image_type):
                what = "no image" if image is None else f"image {image.shape} {image.dtype}"
                raise DataError(
                    f"{what}: expected {wanted} {self.image_type}, the bands "
                    f"{', '.join(self.bands)}, not scaled."
                )
        if "satellite" in self.reads:
            if tile.series is None:
                raise DataError(
                    f"{self.members[0].stored.name} reads a satellite series, and there is none: "
                    "give series and days (on the command line --series FOLDER)."
                )
            if isinstance(tile.series, sentinel2.Series):
                self._require_series(tile.series)
        if "metadata" in self.reads:
            values = tile.metadata
            if values is None or values.shape != (METADATA_VALUES,):
                what = "none" if values is None else f"shape {values.shape}"
                raise DataError(f"metadata: {what}; expected ({METADATA_VALUES},) numbers.")

    def _require_series(self, series: sentinel2.Series) -> None:
        for member in self.members:
            if "satellite" not in member.reads:
                continue
            options = member.inputs.s2_preproc
            shape = (len(SATELLITE_BANDS), options.size, options.size)
            kind = np.float32 if options.monthly else np.uint16
            frames = series.frames
            if frames.ndim != 4 or frames.shape[1:] != shape or frames.dtype != kind:
                raise DataError(
                    f"series {frames.shape} {frames.dtype}: expected (dates, {shape[0]}, "
                    f"{shape[1]}, {shape[2]}) {np.dtype(kind)}, preprocessed as "
                    f"s2_preproc={options.name}; with dates instead of offsets it is done here."
                )
            if len(series.days) != len(frames) or not len(frames):
                raise DataError(f"{len(series.days)} days of {len(frames)} frames.")

    def predict_raster(
        self,
        image: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        out: str | os.PathLike[str],
        options: MapOptions | None = None,
    ) -> MapSummary:
        """Write the land cover of a raster of any size, as `mapping.map_raster` does.

        Args:
            image: A raster file, or several of one mosaic.
            out: The GeoTIFF of classes.
            options: How; None: `mapping.MapOptions()`.

        Raises:
            FlairError: The image is not what the networks read, or the map cannot be written.
        """
        from flair2_exp.inference.mapping import MapOptions, map_raster

        files = [image] if isinstance(image, str | os.PathLike) else image
        images = [Path(each) for each in files]
        return map_raster(self, images, Path(out), options or MapOptions())

    @functools.cached_property
    def made_from(self) -> str:
        """16 hexadecimal digits over what decides the results.

        These are the checkpoints' content, their weights, test-time augmentation and the version.
        """
        networks = []
        for member in self.members:
            with member.stored.checkpoint.open("rb") as file:
                networks.append(hashlib.file_digest(file, "sha256").hexdigest())
        decides = {
            "networks": networks,
            "weights": list(self.weights),
            "tta": self.symmetries,
            "version": __version__,
        }
        return digest(decides)

    # The run's own data.

    @functools.cached_property
    def data(self) -> tuple[FlairDataModule, ...]:
        """The data of each member, as its run reads them.

        Raises:
            FlairError: A member is a lone checkpoint, or its data are not there.
        """
        return tuple(_data(member) for member in self.members)

    def predict_patch(self, patch_id: str) -> Prediction:
        """Predict a patch of the run's own data, by its id.

        Raises:
            DataError: There is none of this id, or it cannot be read.
        """
        ids = self.data[0].index.ids
        found = np.flatnonzero(ids == patch_id)
        if not len(found):
            raise DataError(f"no patch {patch_id}; {nearest(patch_id, ids[:5000].tolist())}")
        for part, positions in self.data[0].split.parts().items():
            if found[0] in positions:
                only = [int(found[0])]
                return next(self.split(part, only=only)).prediction
        raise DataError(f"patch {patch_id} is in no part of the split (or lacks a file).")

    def split(
        self,
        part: str = "test",
        *,
        batch_size: int = 1,
        workers: int = 0,
        only: Sequence[int] | None = None,
    ) -> Iterator[SplitPatch]:
        """Predict the patches of a part of the run's own data, in the index's order.

        Equal bits on a processor, whatever `batch_size` and `workers`: those that the run's test
        computed.

        Args:
            part: `train`, `validation` or `test`; never augmented.
            batch_size: Patches at once.
            workers: Processes that read.
            only: Positions in the index; None: all of the part.

        Raises:
            FlairError: The data are not there, or members' patches differ.
        """
        return read_split(self, part, batch_size=batch_size, workers=workers, only=only)


def _series(
    series: NDArray[Any] | None, days: Days | None, probabilities: NDArray[np.uint8] | None
) -> Acquisitions | sentinel2.Series | None:
    if series is None:
        return None
    if days is None:
        raise DataError("a series needs its days: datetime64 dates, or int64 days to 15 May.")
    if np.issubdtype(days.dtype, np.datetime64):
        return Acquisitions(series, days.astype("datetime64[D]"), probabilities)
    if not np.issubdtype(days.dtype, np.integer):
        raise DataError(
            f"days of {days.dtype}: expected datetime64 dates, or int64 days to 15 May."
        )
    return sentinel2.Series(series, days.astype(np.int64), False)


def _weights(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """Return weights that sum to 1.

    Raises:
        UsageError: Of another number, negative, or all zero.
    """
    if not count:
        raise UsageError("an ensemble needs a run.")
    given = [1.0] * count if weights is None else [float(each) for each in weights]
    if len(given) != count or min(given) < 0 or not np.isfinite(given).all() or not sum(given):
        raise UsageError(
            f"weights {', '.join(map(str, given))} of {count} runs: expected one each, 0 or more."
        )
    return tuple(each / sum(given) for each in given)


def device_of(name: str) -> torch.device:
    """Return a device by its name; `auto` is a GPU where there is one.

    Raises:
        DeviceError: This machine does not have it.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"device {name!r}: expected auto, cpu, cuda or cuda:1.") from None
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise DeviceError(f"device {name}: this machine has {count} GPUs; use --device cpu.")
    return device


def _data(member: Member) -> FlairDataModule:
    from flair2_exp.lifecycle.assembly import build_data

    config = member.stored.config
    if config is None:
        raise ConfigError(
            f"{member.stored.name} is a checkpoint without its run: it does not say which patches "
            "there are.\nName the run's folder to predict a part of its data."
        )
    # Its headers were checked by the run; in a script without a guard the check's processes would
    # start the script anew.
    config = replace(config, dataset=replace(config.dataset, check="none"))
    return build_data(config, normalisation=member.normalisation, parts=("test",))
