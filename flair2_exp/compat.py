"""The private names of other libraries that this package needs, each with the reason.

Nothing else in the package uses one. A test for each fails when the library changes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch.utils.data import DataLoader


def shared_storage(size: int) -> torch.UntypedStorage:
    """Return fresh shared memory of `size` bytes, uninitialised.

    `UntypedStorage._new_shared` is what torch's own `default_collate` fills in a worker. The public
    way, `share_memory_`, makes private memory first and copies it.
    """
    import torch

    storage: torch.UntypedStorage = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call]
    return storage


def has_workers(loader: DataLoader[Any]) -> bool:
    """Return whether a loader's persistent workers are running, as `DataLoader._iterator` tells.

    Workers inherit what is there when they start; torch says nowhere publicly when that is.
    """
    return loader._iterator is not None
