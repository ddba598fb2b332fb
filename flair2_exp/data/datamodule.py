"""The data of an experiment for Lightning: index, split, loaders, scaling on the device."""

from __future__ import annotations

import functools
import math
import multiprocessing
import signal
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch.utils.data import DataLoader, DistributedSampler

from flair2_exp import compat
from flair2_exp.config.data import DataGroups, S2PreprocConfig
from flair2_exp.data import fingerprint, sentinel2, splits, statistics
from flair2_exp.data.dataset import (
    COVERED,
    DAMAGED,
    SHARED,
    Batch,
    BatchKey,
    Failure,
    Parcel,
    PatchDataset,
)
from flair2_exp.data.normalisation import Normalisation, imagenet, scaled
from flair2_exp.data.readers import StoreReader
from flair2_exp.data.sharing import SharedBlocks
from flair2_exp.data.source import (
    PARTS,
    DataSource,
    Patches,
    Reader,
    all_damaged,
    open_source,
)
from flair2_exp.data.statistics import Statistics
from flair2_exp.errors import ConfigError, DamagedPatchError, DataError
from flair2_exp.nomenclature import METADATA_VALUES
from flair2_exp.shortage import lack_of_shared_memory


class BatchSampler(DistributedSampler[Any]):
    """Which patches make up each batch, as `BatchKey`s.

    The order of an epoch depends on the seed and the epoch alone; Lightning calls `set_epoch`. It
    is a DistributedSampler so that Lightning leaves it in place on several devices. There, each
    process gets equally many batches, or they would wait for each other for ever: in training the
    first patches of the order fill up the last round; in evaluation every patch comes exactly once
    and batches differ in size by one (only fewer patches than batches are filled up). With
    `drop_last` all batches are whole, and the patches at the order's end that make up no further
    whole batch for each process are left out of the epoch.

    Attributes:
        start: Batches of the epoch to leave out at its beginning: those a resumed run has had.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        drop_last: bool = False,
        replicas: int = 1,
        rank: int = 0,
    ) -> None:
        """Divide `count` patches among `replicas` processes, of which this is number `rank`.

        A batch of one process has `batch_size` patches; `shuffle` is for training.
        """
        super().__init__(range(count), replicas, rank, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]
        self.count = count
        self.batch_size = batch_size
        self.start = 0
        self._used = count - count % (batch_size * replicas) if drop_last else count
        self._batches = math.ceil(math.ceil(self._used / replicas) / batch_size)

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[BatchKey]:
        if not self._batches:
            return iter(())
        if self.shuffle or self.num_replicas == 1:
            order = np.arange(self.count)
            if self.shuffle:
                order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
            whole = math.ceil(self._used / self.num_replicas) * self.num_replicas
            share = np.resize(order[: self._used], whole)[self.rank :: self.num_replicas]
            parts = np.split(share, range(self.batch_size, len(share), self.batch_size))
        else:  # sizes evened out over all processes
            slots = self._batches * self.num_replicas
            order = np.resize(np.arange(self._used), max(slots, self._used))
            parts = np.array_split(order, slots)[self.rank :: self.num_replicas]
        return (BatchKey(self.epoch, tuple(part.tolist())) for part in parts[self.start :])


class PatchLoader(DataLoader[Any]):
    """A loader of `PatchDataset`'s batches.

    It raises failures here, leaves out empty batches unless all are, and lets the workers use
    memory again that the trainer has let go of. Its state, which Lightning keeps in checkpoints, is
    how many batches of the epoch it has given, so that a run resumes within an epoch.
    """

    dataset: PatchDataset
    sampler: BatchSampler

    def __init__(self, dataset: PatchDataset, **options: Any) -> None:
        """Make a loader; `options` are those of torch's DataLoader."""
        super().__init__(dataset, worker_init_fn=_leave_signals_to_the_trainer, **options)
        self._blocks = SharedBlocks(0, SHARED)
        self._given = self._start = 0

    def state_dict(self) -> dict[str, int]:
        """Return the batches of this epoch so far."""
        return {"batches": self._given}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Begin the next epoch behind its first batches, which another process has had."""
        self._start = state["batches"]

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        if not compat.has_workers(self):  # they are about to start, and inherit blocks of their own
            self._blocks = SharedBlocks(self.num_workers, SHARED)
            self.dataset.blocks = self._blocks
        blocks = self._blocks
        self._given, self._start = self._start, 0
        self.sampler.start = self._given
        batches = super().__iter__()
        self.sampler.start = 0
        empty = self._given == 0
        for batch in batches:
            self._given += 1
            if isinstance(batch, Failure):
                compat.end_workers(self)
                raise DamagedPatchError(batch.message)
            if isinstance(batch, Parcel):
                opened = batch.open()
                for name, lease in batch.leases.items():
                    blocks.hold(batch.patches if name == "patches" else opened[name], lease)
                batch = opened
                del opened
            if batch is not None:
                empty = False
                yield batch
            del batch
            blocks.release()
        if empty:
            compat.end_workers(self)
            raise DataError(self.dataset.all_damaged())


_GRACE: Final = 10
"""Seconds that a worker outlives a SIGTERM; of the others a SIGTERM follows."""


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Let a worker live on while the trainer ends its batch and writes a checkpoint.

    Ctrl-C on a terminal, and a cluster's signals, reach the trainer and its workers alike, and a
    worker that dies ends the training in the middle of a batch.
    """
    del worker
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))


def _as_is(batch: object) -> object:
    """Return a batch as it is: the data set's are tensors already."""
    return batch


_AHEAD: Final = 3
"""Batches of a worker at once: two that wait, as torch's loaders have it, and the one it fills."""


class FlairDataModule(LightningDataModule):
    """Train, validation and test batches of a data source, or of its prepared store.

    Batches are those of `PatchDataset`, scaled on the device: see `on_after_batch_transfer`.

    Loaders yield whole batches (`batch_size` of the DataLoader is None) through `BatchSampler`, so
    `use_distributed_sampler` makes no difference. Workers are forked: they share the index and
    need no fresh import of torch; they touch neither CUDA nor anything but files and arrays.

    Attributes:
        groups: What to read and how.
        reads: What is read, of `aerial`, `satellite` and `metadata`.
        patch_size: Pixels on a side of a patch.
        counts: Patches by part (train, validation, test).
        index: Its patches.
        split: Positions of the parts in the index.
    """

    patch_size: int
    counts: dict[str, int]
    index: Patches
    split: splits.Split

    def __init__(
        self,
        groups: DataGroups,
        *,
        reads: frozenset[str],
        seed: int = 1,
        parts: Sequence[str] = PARTS,
        normalisation: Normalisation | None = None,
        source: DataSource | None = None,
    ) -> None:
        """Choose the data; nothing is read before `setup`.

        The seed is that of order and augmentation; `parts` must not be empty; `normalisation` is
        that of a trained network, None that of the options and of these data; `source` is the data
        set, None that of the groups.
        """
        super().__init__()
        self.groups = groups
        self.reads = reads
        self.seed = seed
        self.parts = tuple(parts)
        self._normalisation = normalisation
        self._datasets: dict[str, PatchDataset] = {}
        self._lacking: dict[str, int] = {}
        if source is not None:
            self.source = source

    @functools.cached_property
    def source(self) -> DataSource:
        """The data set, opened at first use.

        Raises:
            FlairError: As by `source.open_source`.
        """
        return open_source(self.groups, self.reads)

    @property
    def series(self) -> S2PreprocConfig | None:
        """How the satellite series are preprocessed; None where they are not read."""
        return self.groups.s2_preproc if "satellite" in self.reads else None

    def setup(self, stage: str | None = None) -> None:
        """Index, split and check the data; a second call changes nothing.

        Raises:
            DataError: The data set cannot serve this run; the message says why.
        """
        del stage  # the parts belong together: a patch must not be in two of them
        if self._datasets:
            return
        groups = self.groups
        self._require_photometry()
        self.index = self.source.index
        self._divided = splits.split(self.index, groups.split)
        divided = self._divided.parts()
        splits.require(divided, groups.split, self.parts)
        whole = {name: self._whole(name, positions) for name, positions in divided.items()}
        for name, positions in whole.items():
            if name in self.parts and not len(positions):
                first = self.index.name(int(divided[name][0]))
                raise DataError(all_damaged(name, len(divided[name]), first))
        self.split = splits.Split(**whole)
        self.counts = {name: len(positions) for name, positions in whole.items()}
        self.source.settle(whole[self.parts[0]], self.parts[0])
        self.patch_size = self.source.patch_size
        if groups.dataset.store is None:
            reader: Reader = self.source.reader(groups, self.reads)
        else:
            reader = StoreReader(self.source, groups, self.reads)
        for name in PARTS:
            self._datasets[name] = PatchDataset(
                reader,
                whole[name],
                groups,
                seed=self.seed,
                part=name,
                metadata=self._encoded(name, whole[name]),
                bands=self.source.bands,
            )

    @property
    def bands(self) -> tuple[str, ...]:
        """The bands of an image, in the order in which the network sees them."""
        return tuple(self.source.bands[place] for place in self.source.wanted(self.groups))

    def _require_photometry(self) -> None:
        """Refuse augmentation of brightness where pixels are not bytes."""
        aug, kind = self.groups.aug, self.source.image_type
        changes = ("brightness", "contrast", "gamma", "noise")
        asked = [f"aug.{name}" for name in changes if getattr(aug, name)]
        if asked and kind != np.uint8 and "aerial" in self.reads:
            raise ConfigError(
                f"{asked[0]}: images of dataset={self.groups.dataset.name} are {kind}, and "
                f"brightness is changed of uint8 alone.\nSet {asked[0]}=0."
            )

    def _whole(self, part: str, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the patches of a part that have all the files and entries that this run needs."""
        lacking = self.source.lacking(self.reads).items()
        lacks = {what: missing[positions] for what, missing in lacking}
        keep = np.ones(len(positions), dtype=np.bool_)
        for what, missing in lacks.items():
            if missing.any() and part in self.parts and self.groups.dataset.on_damaged == "stop":
                first = self.index.ids[positions[missing][0]]
                raise DataError(
                    f"{missing.sum()} of {len(positions)} {part} patches have no {what}; the first "
                    f"is {first}.\nComplete the data set, or set dataset.on_damaged=skip."
                )
            keep &= ~missing
        self._lacking[part] = int((~keep).sum())
        return positions[keep]

    def _encoded(self, part: str, positions: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """Return the metadata of a part's patches, (n, 45); None where they are not read."""
        if "metadata" not in self.reads:
            return None
        if part in self.parts:
            self.source.warn_of_metadata(positions, part)
        values = self.source.metadata(positions)
        if values.shape != (len(positions), METADATA_VALUES):
            raise DataError(
                f"{type(self.source).__name__}.metadata gives {values.shape}; expected "
                f"{(len(positions), METADATA_VALUES)}: pad with zeros."
            )
        return values

    def dataset(self, part: str) -> PatchDataset:
        """Return the patches of `train`, `validation` or `test`, after `setup`."""
        return self._datasets[part]

    def require_shared_memory(self, processes: int) -> None:
        """Refuse workers whose batches shared memory cannot hold, by the size of the first patch.

        Args:
            processes: That train on this machine, each with its own workers.

        Raises:
            DataError: They need more than is free; the message gives the figures.
        """
        options, part = self.groups.data, self.parts[0]
        if not options.workers:
            return
        try:
            sample = self._datasets[part].reader.read(int(self.split.parts()[part][0]))
        except DamagedPatchError:
            return
        size = options.batch_size_of(part)
        batch = size * sum(
            each.nbytes for each in vars(sample).values() if isinstance(each, np.ndarray)
        )
        count = min(_AHEAD * options.workers, len(self._sampler(part)))
        what = f"data.workers={options.workers}: {count} batches of {batch / 1e6:.1f} MB"
        lack = lack_of_shared_memory(processes * count * batch, what)
        if lack is not None:
            raise DataError(lack)

    def require_whole_batches(self, processes: int) -> None:
        """Refuse `data.drop_last` where it leaves a part of the split no batch at all.

        Args:
            processes: That train, on all machines together; each takes batches of its own.

        Raises:
            DataError: A part has too few patches; the message says what fits.
        """
        for part in self.parts:
            self._sampler(part, processes)

    def _sampler(self, part: str, replicas: int = 1, rank: int = 0) -> BatchSampler:
        """Return what makes up a part's batches; refuse a part that would have none."""
        options, count = self.groups.data, len(self._datasets[part])
        sampler = BatchSampler(
            count,
            options.batch_size_of(part),
            shuffle=part == "train",
            seed=self.seed,
            drop_last=options.drops_last_of(part),
            replicas=replicas,
            rank=rank,
        )
        if not len(sampler):
            name = {"train": "data.batch_size", "validation": "data.val_batch_size"}[part]
            fits = f"{name}={count // replicas} or " if count >= replicas else ""
            each = f" for each of {replicas} devices" if replicas > 1 else ""
            raise DataError(
                f"data.drop_last=true leaves no whole batch of {sampler.batch_size} patches{each}, "
                f"of {count} {part} patches.\nSet {fits}data.drop_last=false."
            )
        return sampler

    def train_dataloader(self) -> PatchLoader:
        """Return shuffled, augmented batches."""
        return self._loader("train")

    def val_dataloader(self) -> PatchLoader:
        """Return validation batches in the index's order."""
        return self._loader("validation")

    def test_dataloader(self) -> PatchLoader:
        """Return test batches in the index's order."""
        return self._loader("test")

    def _loader(self, part: str) -> PatchLoader:
        options, trainer = self.groups.data, self.trainer
        place = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
        can_fork = "fork" in multiprocessing.get_all_start_methods()
        return PatchLoader(
            self._datasets[part],
            batch_size=None,
            sampler=self._sampler(part, *place),
            collate_fn=_as_is,
            # Its own: a loader draws a seed for its workers, which must not move the global state
            # that dropout draws from, or scores would depend on the number of workers.
            generator=torch.Generator(),
            num_workers=options.workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=options.workers > 0,
            multiprocessing_context="fork" if options.workers and can_fork else None,
        )

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Scale a batch where it is: on the device.

        Returns:
            The batch with `image` as float32 (in 0..1 where its pixels are integers), `series` as
            float32 divided as the options say (`sentinel2.divisor`; zero frames stay zero), both
            then normalised where the options say so, and `label` and `satellite_label` as int64.
        """
        del dataloader_idx
        divisor = sentinel2.divisor(self.groups.s2_preproc)
        return self.normalisation.applied(scaled(batch, image=self.source.scale, series=divisor))

    @functools.cached_property
    def normalisation(self) -> Normalisation:
        """By what image and series are normalised; after `setup` where statistics are needed."""
        if self._normalisation is not None:
            return self._normalisation
        kinds = self.groups.data.normalisation, self.groups.s2_preproc.normalisation
        image = series = None
        if "aerial" in self.reads and kinds[0] != "none":
            by_data = kinds[0] == "dataset"
            image = (
                self.statistics.image if by_data else imagenet(self.groups.data.bands or self.bands)
            )
        if self.series is not None and kinds[1] == "dataset":
            series = self.statistics.series
        return Normalisation(image, series)

    @functools.cached_property
    def statistics(self) -> Statistics:
        """Those of the training patches, after `setup`; computed where none are kept."""
        return statistics.of(self)

    @functools.cached_property
    def fingerprint(self) -> str:
        """What `fingerprint.fingerprint` says of these data, after `setup`."""
        return fingerprint.of_split(self.source, self._divided, self.groups, self.reads)

    def fingerprint_of(self, *parts: str, reads: frozenset[str] | None = None) -> str:
        """Return the fingerprint of some parts alone, after `setup`.

        Args:
            parts: Of `train`, `validation`, `test`.
            reads: The inputs that count, some of `self.reads`; None: all of these.
        """
        chosen = self.reads if reads is None else reads
        return fingerprint.of_split(self.source, self._divided, self.groups, chosen, parts)

    @property
    def skipped(self) -> dict[str, int]:
        """Damaged patches by part so far, those without all their files included."""
        return {name: self._lacking[name] + self._flagged(name, DAMAGED) for name in self._datasets}

    @property
    def covered(self) -> dict[str, int]:
        """Patches by part whose series had no clear acquisition, so far."""
        return {name: self._flagged(name, COVERED) for name in self._datasets}

    def _flagged(self, part: str, flag: int) -> int:
        return int(((self._datasets[part].flags & flag) > 0).sum())

    def teardown(self, stage: str) -> None:
        """Say what was skipped and where a covered acquisition stands in."""
        del stage
        for name, count in self.skipped.items():
            if count:
                warnings.warn(f"{count} damaged {name} patches were skipped", stacklevel=2)
        for name, count in self.covered.items():
            if count:
                warnings.warn(
                    f"{count} {name} patches have no acquisition clear enough: "
                    "their clearest stand in",
                    stacklevel=2,
                )
