"""Patches as batches: read from the tree or from a prepared store, augmented, put together.

A batch is a dictionary of tensors in the files' own integer types (monthly means are float32);
`datamodule.FlairDataModule` scales it on the device. The random numbers of a sample depend on the
seed, the epoch and the patch alone, so neither the number of workers nor the batch size changes
what a patch looks like.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from flair2_exp.config.data import DataGroups
from flair2_exp.data.augment import build_augmentation
from flair2_exp.data.sentinel2 import Frames
from flair2_exp.data.sharing import Lease, SharedBlocks
from flair2_exp.data.source import Reader, Sample, all_damaged
from flair2_exp.errors import DamagedPatchError
from flair2_exp.nomenclature import AERIAL_BANDS

Batch = dict[str, Any]

PATCHES: Final = ("image", "label", "satellite_label")
"""A batch's tensors with a row of one size for each patch. One behind the other, they need the
widest type first."""

Form = tuple[tuple[int, ...], str]
"""Shape and type of a tensor."""

SHARED: Final = ("patches", "series")
"""What a worker sends in blocks of shared memory."""


class BatchKey(NamedTuple):
    """What a loader asks the data set for: positions in the split, in an epoch."""

    epoch: int
    positions: tuple[int, ...]


DAMAGED: Final = 1
COVERED: Final = 2
"""Flags of a patch: it could not be read; the clearest acquisition had to stand in."""


_DRAWS: Final = 20
"""Patches that are tried in the place of a damaged one."""


class Failure(NamedTuple):
    """What stops the run, as a value: a worker's exception would carry its traceback along."""

    message: str


class PatchDataset(Dataset[Any]):
    """A split's patches as whole batches.

    It is indexed with a `BatchKey` and gives a dictionary of

    - `image` (B, C, H, W) uint8, uint16 or float32, where the reader reads it;
    - `label` (B, H, W) uint8 class indices, and `satellite_label` alike where it differs;
    - `series` (B, T, 10, S, S) uint16 or float32, `days` (B, T) int64 and `padding` (B, T) bool,
      where the reader reads them: shorter series are padded at the end with zero frames, and a
      frame that is zero everywhere counts as padding, too; days are 0 there;
    - `metadata` (B, 45) float32, where given;
    - `patch_id` and `area`, lists of B names.

    In a worker it gives a `Parcel` with that, in `blocks`, where the loader gave some
    (`sharing.SharedBlocks`).

    A damaged patch is a `Failure`, or is skipped: in training another patch takes its place, so
    that batches stay whole; elsewhere the batch is shorter, and None where nothing of it is left.
    """

    def __init__(
        self,
        reader: Reader,
        patches: NDArray[np.int64],
        groups: DataGroups,
        *,
        seed: int = 1,
        part: str = "test",
        metadata: NDArray[np.float32] | None = None,
        bands: Sequence[str] = AERIAL_BANDS,
    ) -> None:
        """Choose a split's patches: (n,) positions in the reader's index.

        Those of the part `train` are augmented, and another takes a skipped one's place; `metadata`
        is (n, 45), encoded; `bands` are all of the source's.
        """
        training = part == "train"
        self.part = part
        self.reader = reader
        self.index = reader.index
        self.patches = patches
        self.seed = seed
        augmented = training and groups.aug.active
        named = groups.data.bands or bands
        self.augmentation = build_augmentation(groups.aug, named) if augmented else None
        self.metadata = metadata
        self.on_damaged = groups.dataset.on_damaged
        self.replace = training
        self.flags = torch.zeros(len(patches), dtype=torch.uint8)
        self.flags.share_memory_()  # type: ignore[no-untyped-call]
        self.blocks: SharedBlocks | None = None

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, key: BatchKey) -> Batch | Parcel | Failure | None:
        try:
            return self._collate(self._samples(key), len(key.positions))
        except DamagedPatchError as error:
            return Failure(str(error))

    def _samples(self, key: BatchKey) -> Iterator[tuple[int, Sample]]:
        """Read a batch's samples with their positions; raises what is to stop the run."""
        for position in key.positions:
            try:
                yield position, self.sample(position, key.epoch)
            except DamagedPatchError as error:
                if self.on_damaged == "stop":
                    raise DamagedPatchError(self._name(position, error)) from None
                self.flags[position] |= DAMAGED
                if self.replace:
                    other = self._replacement(position, key.epoch)
                    if other is None:
                        raise DamagedPatchError(self._name(position, error)) from None
                    yield other

    def sample(self, position: int, epoch: int) -> Sample:
        """Return the sample at a position of the split, augmented as in an epoch.

        Raises:
            DamagedPatchError: It cannot be read; the message names the file.
        """
        sample = self.reader.read(int(self.patches[position]))
        if sample.covered:
            self.flags[position] |= COVERED
        if self.augmentation is None:
            return sample
        return self.augmentation(sample, self._generator(position, epoch))

    def _generator(self, position: int, epoch: int, stream: int = 0) -> np.random.Generator:
        """Return random numbers of a patch in an epoch, the same in whichever process or split."""
        patch = zlib.crc32(str(self.index.ids[self.patches[position]]).encode())
        # A key of its own is all that Philox needs; mixing entropy first takes ten times as long.
        key = np.array([self.seed << 32 | epoch, patch << 32 | stream], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=key))

    def _replacement(self, position: int, epoch: int) -> tuple[int, Sample] | None:
        """Return another sample of the split for a damaged one; None where 20 others give none."""
        generator = self._generator(position, epoch, stream=1)
        for other in generator.permutation(len(self.patches))[:_DRAWS].tolist():
            try:
                return other, self.sample(other, epoch)
            except DamagedPatchError:
                self.flags[other] |= DAMAGED
        return None

    def all_damaged(self) -> str:
        """Return that none of the patches can be read."""
        return all_damaged(self.part, len(self), self.index.name(int(self.patches[0])))

    def _name(self, position: int, error: DamagedPatchError) -> str:
        """Return what is damaged, and what to do."""
        if self.on_damaged == "skip":  # and nothing could take its place
            if len(self) <= _DRAWS:
                return self.all_damaged()
            damaged = int((self.flags & DAMAGED > 0).sum())
            fix = (
                f"So are the {_DRAWS} patches drawn in its place, and {damaged} of {len(self)} "
                f"{self.part} patches so far: run `flair2-exp check` on the data set."
            )
        else:
            fix = "Run `flair2-exp check` on the data set, or set dataset.on_damaged=skip."
        return f"patch {self.index.name(int(self.patches[position]))} is damaged: {error}\n{fix}"

    def _collate(self, read: Iterator[tuple[int, Sample]], count: int) -> Batch | Parcel | None:
        """Put at most `count` samples together, each as soon as it is read: it is in the caches."""
        blocks = self.blocks if get_worker_info() is not None else None
        leases: dict[str, Lease] = {}

        def empty(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
            if blocks is None:
                return torch.from_numpy(np.empty(shape, dtype))
            tensor, leases[name] = blocks.take(name, shape, dtype)
            return tensor

        forms: dict[str, Form] = {}
        rows: dict[str, Tensor] = {}
        positions: list[int] = []
        series: list[tuple[Frames, NDArray[np.int64]]] = []
        for position, sample in read:
            arrays = {n: each for n in PATCHES if (each := getattr(sample, n)) is not None}
            if not rows:
                forms = {n: ((count, *each.shape), each.dtype.name) for n, each in arrays.items()}
                patches = empty("patches", (sum(map(_bytes, forms.values())),), np.dtype(np.uint8))
                rows = _cut(patches, forms)
            for name, array in arrays.items():
                np.copyto(rows[name][len(positions)].numpy(), array)
            positions.append(position)
            if sample.frames is not None and sample.days is not None:
                series.append((sample.frames, sample.days))
        if not positions:
            return None
        patches_read = self.patches[positions]
        batch: Batch = {
            "patch_id": self.index.ids[patches_read].tolist(),
            "area": self.index.area_names[self.index.area[patches_read]].tolist(),
        }
        if series:
            parts = pad_series(series, functools.partial(empty, "series"))
            batch |= zip(("series", "days", "padding"), parts, strict=True)
        if self.metadata is not None:
            batch["metadata"] = torch.from_numpy(self.metadata[positions])
        if blocks is not None:
            small = {n: batch[n].numpy() for n in ("days", "padding", "metadata") if n in batch}
            return Parcel(patches, tuple(forms.items()), batch | small, leases)
        return batch | {name: tensor[: len(positions)] for name, tensor in rows.items()}


class Parcel(NamedTuple):
    """A batch on its way from a worker: in two tensors, for each costs the trainer a connection.

    A tuple of plain parts, so that pinning its tensors leaves it whole.
    """

    patches: Tensor
    """(bytes,) uint8: those of `PATCHES` one behind the other."""
    forms: Sequence[tuple[str, Form]]
    """Their names, shapes with room for a whole batch, and types."""
    rest: Batch
    """The rest of the batch; all but `series` as NumPy's arrays, which the message itself holds."""
    leases: dict[str, Lease]
    """By which to release the blocks of `patches` and `series`."""

    def open(self) -> Batch:
        """Return the batch; its tensors are views of the parcel's."""
        batch = {
            name: torch.from_numpy(each) if isinstance(each, np.ndarray) else each
            for name, each in self.rest.items()
        }
        count = len(batch["patch_id"])
        cut = _cut(self.patches, dict(self.forms))
        return batch | {name: tensor[:count] for name, tensor in cut.items()}


def _bytes(form: Form) -> int:
    shape, kind = form
    return math.prod(shape) * np.dtype(kind).itemsize


def _cut(patches: Tensor, forms: Mapping[str, Form]) -> dict[str, Tensor]:
    """Return views, of these shapes and types, of what lies one behind the other."""
    parts = torch.split(patches, [_bytes(form) for form in forms.values()])
    return {
        name: part.view(getattr(torch, kind)).view(tuple(shape))
        for (name, (shape, kind)), part in zip(forms.items(), parts, strict=True)
    }


def pad_series(
    series: Sequence[tuple[Frames, NDArray[np.int64]]],
    empty: Callable[[tuple[int, ...], np.dtype[Any]], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Stack series of unequal lengths.

    Args:
        series: Frames (T_i, 10, S, S) and days (T_i,) of each.
        empty: Makes the tensor of the frames, of a shape and a type.

    Returns:
        Frames (B, T, 10, S, S), days (B, T) int64 and padding (B, T) bool, T the longest T_i.
        Frames beyond a series' end are zero; they and frames that are zero everywhere are padding
        with day 0.
    """
    longest = max(len(days) for _, days in series)
    first = series[0][0]
    frames = empty((len(series), longest, *first.shape[1:]), first.dtype)
    stacked = frames.numpy()
    days = torch.zeros(len(series), longest, dtype=torch.int64)
    padding = torch.ones(len(series), longest, dtype=torch.bool)
    for row, (one, offsets) in enumerate(series):
        count = len(offsets)
        np.copyto(stacked[row, :count], one)
        stacked[row, count:] = 0
        blank = _blank(one)
        padding[row, :count] = torch.from_numpy(blank)
        days[row, :count] = torch.from_numpy(np.where(blank, 0, offsets))
    return frames, days, padding


def _blank(frames: Frames) -> NDArray[np.bool_]:
    """Return, (T,), which frames are zero everywhere; only those zero in a corner are searched."""
    blank: NDArray[np.bool_] = frames[:, 0, 0, 0] == 0
    for position in np.flatnonzero(blank).tolist():
        blank[position] = not frames[position].any()
    return blank
