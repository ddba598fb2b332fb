"""Memory that workers share with the trainer, used again batch after batch.

A batch of ten U-T&T samples is 20 MB. In fresh shared memory the system clears and maps each of its
pages when a worker first writes to it, which takes a fifth of the time that reading the batch does,
and on several cores longer still. So a worker takes the blocks of earlier batches, as soon as the
trainer has let go of them.

    worker                                      trainer
    tensor, lease = blocks.take("image", …)
    fill the tensor, send tensor and lease  →   blocks.hold(tensor, lease)
                                                use and drop the tensor
                                                blocks.release()
    the next take() may give the block again

The trainer's side says which blocks are free by looking at its own references: a tensor that is
still held anywhere, or a view of it, keeps its block. Where the trainer never sees a batch (an
epoch that was cut short), the worker replaces its oldest block by a fresh one. Nothing waits for
anything, and without this module batches would be the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.data import get_worker_info

from flair2_exp import compat

LIMIT: Final = 8
"""Blocks of a name in a worker: of two batches ahead, one being filled, and a few in use."""


class Lease(NamedTuple):
    """A block's use for one batch."""

    worker: int
    block: int
    ticket: int
    """Counts the uses of all of a worker's blocks, so that no late release is taken for another."""


@dataclass
class _Block:
    index: int
    storage: torch.UntypedStorage
    ticket: int


class SharedBlocks:
    """The blocks of a loader's workers, seen from both sides.

    It must exist before the workers do (they inherit it): the table of released tickets, int64
    (workers, blocks), is in shared memory, and each of its cells is written by the trainer alone.
    """

    def __init__(self, workers: int, names: Sequence[str]) -> None:
        """Make the table for tensors of these names, each at most once in a batch."""
        self._first = {name: LIMIT * number for number, name in enumerate(names)}
        self._released = torch.zeros(workers, LIMIT * len(names), dtype=torch.int64)
        self._released.share_memory_()  # type: ignore[no-untyped-call]
        self._blocks: dict[str, list[_Block]] = {name: [] for name in names}  # a worker's
        self._ticket = 0  # a worker's
        self._arrived: list[tuple[StorageWeakRef, Lease]] = []  # the trainer's

    def take(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Tensor, Lease]:
        """Take an uninitialised tensor of a batch, in a worker.

        Returns:
            The tensor, in shared memory, and the lease to send along.
        """
        worker = get_worker_info()
        assert worker is not None, "blocks are for workers"
        block = self._free_block(worker.id, name, math.prod(shape) * dtype.itemsize)
        empty = torch.from_numpy(np.empty(0, dtype=dtype))
        # Like this, torch's own default_collate puts a batch into shared memory.
        tensor = empty.set_(block.storage).resize_(shape)
        return tensor, Lease(worker.id, block.index, block.ticket)

    def _free_block(self, worker: int, name: str, size: int) -> _Block:
        """Return a block of at least `size` bytes that nobody uses."""
        blocks = self._blocks[name]
        released = self._released[worker]
        free = (block for block in blocks if int(released[block.index]) == block.ticket)
        block = next(free, None)
        if block is None and len(blocks) < LIMIT:
            block = _Block(self._first[name] + len(blocks), compat.shared_storage(size), 0)
            blocks.append(block)
        elif block is None or block.storage.nbytes() < size:
            block = block or min(blocks, key=lambda block: block.ticket)
            block.storage = compat.shared_storage(size)  # whoever still uses the old one keeps that
        self._ticket += 1
        block.ticket = self._ticket
        return block

    def hold(self, tensor: Tensor, lease: Lease) -> None:
        """Take note, in the trainer, of a tensor as it came: in the block, or copied and pinned."""
        if tensor.is_shared():  # type: ignore[no-untyped-call]
            storage = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
            self._arrived.append((storage, lease))
        else:
            self._release(lease)

    def release(self) -> None:
        """Release the blocks, in the trainer, whose tensors and all views of them are gone."""
        arrived, self._arrived = self._arrived, []
        for storage, lease in arrived:
            if storage.expired():  # type: ignore[no-untyped-call]
                self._release(lease)
            else:
                self._arrived.append((storage, lease))

    def _release(self, lease: Lease) -> None:
        self._released[lease.worker, lease.block] = lease.ticket
