"""Two processes normalise as one with the joint batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from flair2_exp.training.batch_norm import SharedBatchNorm, SharedBatchNorms


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    momenta = nn.BatchNorm2d(4), nn.BatchNorm2d(2, momentum=None)
    return nn.Sequential(nn.Conv2d(3, 4, 3), momenta[0], nn.ReLU(), nn.Conv2d(4, 2, 1), momenta[1])


def _batches() -> Tensor:
    return torch.randn(2, 5, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 3 + 1


def _trained(network: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    """Buffers after two steps of training, and gradients of the second."""
    for step in range(2):
        network.zero_grad()
        (network(batch + step) ** 3).sum().backward()
    gradients = {f"{n}.grad": each.grad for n, each in network.named_parameters()}
    return {**dict(network.named_buffers()), **gradients}  # type: ignore[dict-item]


def _process(rank: int, folder: str) -> None:
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    network = SharedBatchNorms().apply(_network())
    assert sum(isinstance(each, SharedBatchNorm) for each in network.modules()) == 2
    # Devices have batches of different sizes where an epoch's last ones are not whole.
    batch = torch.cat(list(_batches()))
    found = _trained(network, batch[:3] if rank == 0 else batch[3:])
    gradients = [each for name, each in found.items() if name.endswith(".grad")]
    for each in gradients:
        torch.distributed.all_reduce(each)
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_statistics_and_gradients_are_those_of_one_process_with_the_joint_batch(
    tmp_path: Path,
) -> None:
    torch.multiprocessing.spawn(_process, (str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    expected = _trained(_network(), torch.cat(list(_batches())))
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-3, msg=name)


def test_alone_a_shared_batch_norm_is_a_batch_norm() -> None:
    batch = _batches()[0]
    shared = _trained(SharedBatchNorms().apply(_network()), batch)
    for name, value in _trained(_network(), batch).items():
        torch.testing.assert_close(shared[name], value)
