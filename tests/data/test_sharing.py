"""Shared blocks: used again once the trainer has let go, never sooner, and never waited for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.data._utils.pin_memory import pin_memory

from flair2_exp.data import sharing
from flair2_exp.data.datamodule import BatchSampler, PatchLoader
from flair2_exp.data.dataset import BatchKey, Parcel
from flair2_exp.data.sharing import LIMIT, Lease, SharedBlocks

UINT8 = np.dtype(np.uint8)


class Worker:
    id = 1


@pytest.fixture(autouse=True)
def _in_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "get_worker_info", Worker)


def arrived(sent: Tensor) -> Tensor:
    """The tensor as another process gets it: the same memory, mapped once more."""
    file, size = sent.untyped_storage()._share_fd_cpu_()
    file = os.dup(file)
    storage = torch.UntypedStorage._new_shared_fd_cpu(file, size)
    os.close(file)
    return sent.new_empty(0).set_(storage).resize_(sent.shape)


def address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def test_a_block_is_used_again_after_its_tensor_is_gone() -> None:
    blocks = SharedBlocks(2, ["image"])

    def next_address() -> int:
        return address(blocks.take("image", (2, 5), UINT8)[0])

    sent, lease = blocks.take("image", (3, 4), UINT8)
    first = address(sent)
    tensor = arrived(sent)
    blocks.hold(tensor, lease)
    blocks.release()
    assert next_address() != first  # the tensor is still there
    view = tensor[1:, ::2]
    del tensor
    blocks.release()
    assert next_address() != first  # and so is a view of it
    array = view.numpy()
    del view
    blocks.release()
    assert next_address() != first  # and an array over that
    del array
    assert next_address() != first
    blocks.release()
    assert next_address() == first


def test_a_copy_releases_at_once() -> None:
    blocks = SharedBlocks(2, ["image"])
    sent, lease = blocks.take("image", (3, 4), UINT8)
    first = address(sent)
    blocks.hold(sent.clone(), lease)  # as pinned memory is
    assert address(blocks.take("image", (3, 4), UINT8)[0]) == first


def test_a_block_grows_and_serves_any_type() -> None:
    blocks = SharedBlocks(2, ["series", "label"])
    for shape, kind in (((2, 3), np.uint16), ((1, 7), np.float32), ((5, 1), np.uint8)):
        sent, lease = blocks.take("series", shape, np.dtype(kind))
        assert tuple(sent.shape) == shape
        assert sent.numpy().dtype == kind
        sent.fill_(3)
        assert lease.block == 0
        blocks.hold(sent.clone(), lease)
    assert blocks.take("label", (1,), UINT8)[1].block == LIMIT


def test_a_worker_whose_batches_are_never_seen_goes_on() -> None:
    blocks = SharedBlocks(2, ["image"])
    taken = [blocks.take("image", (4,), UINT8) for _ in range(3 * LIMIT)]
    assert len({address(tensor) for tensor, _ in taken}) == len(taken)
    for number, (tensor, _) in enumerate(taken):
        tensor.fill_(number)
    assert [int(tensor[0]) for tensor, _ in taken] == list(range(3 * LIMIT))
    # A release that comes late, of a block that was given away since, frees nothing.
    late, lease = taken[0]
    blocks.hold(late.clone(), lease)
    assert address(blocks.take("image", (4,), UINT8)[0]) not in {address(t) for t, _ in taken}


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["take", "drop", "forget"]), st.integers(0, 30)), max_size=60
    )
)
def test_what_is_held_is_never_written_to(steps: list[tuple[str, int]]) -> None:
    blocks = SharedBlocks(2, ["image"])
    held: list[tuple[Tensor, int]] = []
    for number, (step, choice) in enumerate(steps):
        if step == "take":
            sent, lease = blocks.take("image", (choice + 1,), UINT8)
            sent.fill_(number)
            tensor = arrived(sent)
            blocks.hold(tensor, lease)
            held.append((tensor, number))
            del tensor
        elif held and step == "drop":
            held.pop(choice % len(held))
        elif step == "forget":  # a batch that the trainer never sees
            blocks.take("image", (choice + 1,), UINT8)[0].fill_(255)
        blocks.release()
        assert all(bool((tensor == value).all()) for tensor, value in held)


# With real workers.


class Numbers(Dataset[Any]):
    """Batches that hold their number, in blocks."""

    blocks: SharedBlocks

    def __getitem__(self, key: BatchKey) -> Parcel:
        patches, lease = self.blocks.take("patches", (2 * 300 * 300,), UINT8)
        patches.fill_(key.positions[0])
        names = {"patch_id": ["IMG_000001", "IMG_000002"]}
        return Parcel(patches, (("label", ((2, 300, 300), "uint8")),), names, {"patches": lease})


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> PatchLoader:
    monkeypatch.undo()
    data: Any = Numbers()
    sampler = BatchSampler(60, 1, shuffle=False)
    return PatchLoader(
        data, batch_size=None, sampler=sampler, num_workers=2, persistent_workers=True,
        multiprocessing_context="fork", collate_fn=lambda batch: batch,
    )  # fmt: skip


def held_numbers(loader: PatchLoader, keep: int) -> list[int]:
    """What the batches say once `keep` more have come, and that they say it all over."""
    window: list[Tensor] = []
    said = []
    for batch in loader:
        assert set(batch) == {"label", "patch_id"}
        window.append(batch["label"])
        if len(window) > keep:
            oldest = window.pop(0)
            assert bool((oldest == oldest[0, 0, 0]).all())
            said.append(int(oldest[0, 0, 0]))
    return said + [int(rest[0, 0, 0]) for rest in window]


@pytest.mark.parametrize("keep", [0, 2, 40])
def test_batches_stay_what_they_are_however_long_they_are_held(
    loader: PatchLoader, keep: int
) -> None:
    for _ in range(3):
        assert held_numbers(loader, keep) == list(range(60))


def test_a_parcel_survives_being_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "pin_memory", Tensor.clone)  # pinning itself needs a GPU
    leases = {"patches": Lease(0, 1, 2)}
    rest = {"patch_id": ["a", "b"], "days": np.arange(4).reshape(2, 2), "series": torch.ones(2, 2)}
    forms = (("label", ((3, 2), "uint8")), ("image", ((3, 1, 2), "uint8")))
    parcel = Parcel(torch.arange(12, dtype=torch.uint8), forms, rest, leases)
    pinned = pin_memory(parcel)
    assert pinned.patches is not parcel.patches
    assert pinned.leases == leases
    opened = pinned.open()
    assert opened["label"].tolist() == [[0, 1], [2, 3]]  # of two patches, in room for three
    assert opened["image"].tolist() == [[[6, 7]], [[8, 9]]]
    assert opened["days"].tolist() == [[0, 1], [2, 3]]
    assert opened["series"].tolist() == [[1, 1], [1, 1]]


def test_an_epoch_that_is_cut_short_does_not_spoil_the_next(loader: PatchLoader) -> None:
    for _ in range(12):
        for batch in loader:
            if int(batch["label"][0, 0, 0]) == 3:
                break
    assert held_numbers(loader, 1) == list(range(60))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_workers_map_a_few_blocks_and_no_more(loader: PatchLoader) -> None:
    inherited = [torch.zeros(1).share_memory_() for _ in range(2 * LIMIT)]
    held_numbers(loader, 0)
    del inherited
    workers = loader._iterator._workers  # type: ignore[union-attr]
    for worker in workers:
        maps = Path(f"/proc/{worker.pid}/maps").read_text().splitlines()
        # The name says who made it: a forked worker maps what other tests have left as well.
        made = [line for line in maps if f"/torch_{worker.pid}_" in line]
        assert 1 <= len(made) <= LIMIT
