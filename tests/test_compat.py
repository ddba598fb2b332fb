"""Private names of other libraries still mean what `flair2_exp.compat` takes them for."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch.utils.data import DataLoader

from flair2_exp import compat


def test_a_shared_storage_is_seen_by_another_process() -> None:
    tensor = torch.empty(0, dtype=torch.uint8).set_(compat.shared_storage(100)).resize_(100)
    assert tensor.is_shared()
    tensor.zero_()
    child = os.fork()
    if not child:
        tensor.numpy()[:] = 7
        os._exit(0)
    os.waitpid(child, 0)
    assert tensor.tolist() == [7] * 100


def test_a_loader_has_workers_from_its_first_epoch_on() -> None:
    data: Any = list(range(4))
    loader: DataLoader[Any] = DataLoader(
        data, num_workers=1, persistent_workers=True, multiprocessing_context="fork"
    )
    assert not compat.has_workers(loader)
    assert len(list(loader)) == 4
    assert compat.has_workers(loader)
    assert len(list(loader)) == 4


def test_a_loader_without_workers_never_has_any() -> None:
    data: Any = list(range(4))
    loader: DataLoader[Any] = DataLoader(data)
    list(loader)
    assert not compat.has_workers(loader)
