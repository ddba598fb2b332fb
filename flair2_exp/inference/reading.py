"""The patches of a run's own data, read once for each member of a predictor, and predicted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flair2_exp.data.datamodule import BatchSampler, FlairDataModule, PatchLoader
from flair2_exp.data.dataset import PatchDataset
from flair2_exp.data.source import PARTS
from flair2_exp.errors import DataError, UsageError, nearest
from flair2_exp.inference.patches import SplitPatch

if TYPE_CHECKING:
    from flair2_exp.inference.predictor import Predictor


def read_split(
    predictor: Predictor,
    part: str,
    *,
    batch_size: int = 1,
    workers: int = 0,
    only: Sequence[int] | None = None,
) -> Iterator[SplitPatch]:
    """Predict patches of the run's own data, as `Predictor.split` says."""
    own = positions_of(predictor, part)
    patches = np.array(own if only is None else only, dtype=np.int64)
    first = predictor.data[0].index
    loaders = [
        _loader(data, _same(data, first.ids[patches]), batch_size, workers)
        for data in predictor.data
    ]
    by_id = {str(first.ids[patch]): int(patch) for patch in patches}
    for batches in zip(*loaders, strict=True):
        ids = _common([list(batch["patch_id"]) for batch in batches])
        read = [
            {n: each for n, each in batch.items() if isinstance(each, Tensor)} for batch in batches
        ]
        areas, truths = list(batches[0]["area"]), batches[0]["label"].numpy().copy()
        predictions = predictor.predictions(read)
        for patch_id, area, truth, made in zip(ids, areas, truths, predictions, strict=True):
            yield SplitPatch(by_id[patch_id], patch_id, area, truth, made)


def _common(ids: Sequence[list[str]]) -> list[str]:
    """Return the patches of a batch.

    Raises:
        DataError: The members have read others.
    """
    for other in ids[1:]:
        if other != ids[0]:
            lost = sorted({*ids[0]} ^ {*other})
            raise DataError(
                f"the members of the ensemble do not read the same patches: {', '.join(lost[:3])}."
                "\nOne of them skips what is damaged (dataset.on_damaged): complete the data."
            )
    return ids[0]


def positions_of(predictor: Predictor, part: str) -> list[int]:
    """Return the positions of a part's patches in the index of the run's data.

    Raises:
        UsageError: There is no such part.
        DataError: It holds no patch.
    """
    if part not in PARTS:
        raise UsageError(f"part {part!r}: {nearest(part, PARTS)}")
    positions: list[int] = predictor.data[0].split.parts()[part].tolist()
    if not positions:
        raise DataError(f"the data have no {part} patches.\nName another part.")
    return positions


def _same(data: FlairDataModule, ids: NDArray[np.str_]) -> NDArray[np.int64]:
    """Return the positions of patches in a member's own index.

    Raises:
        DataError: It lacks one.
    """
    order = np.argsort(data.index.ids)
    places = np.searchsorted(data.index.ids, ids, sorter=order)
    found = order[np.minimum(places, len(order) - 1)]
    missing = ids[data.index.ids[found] != ids]
    if len(missing):
        raise DataError(
            f"the runs are of different data: patch {missing[0]} is not in all of them.\n"
            "An ensemble of runs on one data set can be predicted over a split."
        )
    return np.asarray(found, dtype=np.int64)


def _loader(
    data: FlairDataModule, patches: NDArray[np.int64], batch_size: int, workers: int
) -> PatchLoader:
    dataset = data.dataset("test")
    chosen = PatchDataset(
        dataset.reader,
        patches,
        data.groups,
        part="test",
        metadata=data.source.metadata(patches) if "metadata" in data.reads else None,
        bands=data.source.bands,
    )
    return PatchLoader(
        chosen,
        batch_size=None,
        sampler=BatchSampler(len(patches), batch_size, shuffle=False),
        collate_fn=lambda batch: batch,
        generator=torch.Generator(),
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )
