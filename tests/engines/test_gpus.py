"""The GPUs that a command sees, against what CUDA's documentation says of its variable."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flair2_exp.engines.gpus import listed, visible_gpus

Driver = Callable[..., None]

WHOLE = """\
GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-aaaa0000-1111-2222-3333-444444444444)
GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-aabb0000-1111-2222-3333-444444444444)
GPU 2: NVIDIA A100-SXM4-80GB (UUID: GPU-cccc0000-1111-2222-3333-444444444444)
"""
DIVIDED = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa)
  MIG 3g.20gb     Device  0: (UUID: MIG-1111)
  MIG 3g.20gb     Device  1: (UUID: MIG-2222)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-bbbb)
"""
A, B, C = (line.partition("UUID: ")[2].rstrip(")") for line in WHOLE.splitlines())


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    """Put a program in place of `nvidia-smi` that lists these GPUs; None: there is no driver."""

    def make(text: str | None, status: int = 0) -> None:
        listed.cache_clear()
        place = tmp_path / "bin"
        place.mkdir(exist_ok=True)
        if text is not None:
            (place / "list").write_text(text)
            program = place / "nvidia-smi"
            program.write_text(f'#!/bin/sh\n/bin/cat "{place}/list"\nexit {status}\n')
            program.chmod(0o755)
        monkeypatch.setenv("PATH", str(place))

    yield make
    listed.cache_clear()


@pytest.mark.parametrize(
    ("variable", "gpus"),
    [
        (None, [A, B, C]),
        ("", []),
        ("2,0", [C, A]),
        ("1", [B]),
        ("1,-1,0", [B]),  # what is behind a device that is not there does not count
        ("0,7,1", [A]),
        ("0,0", [A]),
        (B, [B]),
        ("GPU-aabb, GPU-cccc", [B, C]),  # a beginning is enough where one device has it
        ("GPU-aa", []),
        ("NoDevFiles", []),
    ],
)
def test_the_variable_is_read_as_cuda_reads_it(
    driver: Driver, variable: str | None, gpus: list[str]
) -> None:
    driver(WHOLE)
    environment = {} if variable is None else {"CUDA_VISIBLE_DEVICES": variable}
    assert visible_gpus(environment) == gpus


@pytest.mark.parametrize(
    ("variable", "gpus"),
    [
        (None, ["MIG-1111", "MIG-2222", "GPU-bbbb"]),
        ("MIG-2222", ["MIG-2222"]),
        ("0", ["MIG-1111"]),
        ("1", ["GPU-bbbb"]),
    ],
)
def test_of_a_divided_gpu_its_instances_count(
    driver: Driver, variable: str | None, gpus: list[str]
) -> None:
    driver(DIVIDED)
    environment = {} if variable is None else {"CUDA_VISIBLE_DEVICES": variable}
    assert visible_gpus(environment) == gpus


def test_without_a_driver_there_is_none(driver: Driver) -> None:
    driver(None)
    assert listed() == []
    assert visible_gpus({}) == []


def test_a_driver_that_fails_lists_none(driver: Driver) -> None:
    driver(WHOLE, status=9)
    assert listed() == []


def test_without_a_listing_the_variable_is_believed(driver: Driver) -> None:
    driver(None)
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "3,GPU-x"}) == ["3", "GPU-x"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "-1"}) == []
