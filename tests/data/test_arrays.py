"""Array files: as numpy.load has them, headers kept, damage told."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flair2_exp.data import arrays
from flair2_exp.data.arrays import open_array, read_header

NUMBERS = st.sampled_from(["<u2", "|u1", "<f4", ">i8"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    values=NUMBERS.flatmap(lambda kind: hnp.arrays(kind, hnp.array_shapes(min_side=0, max_dims=4))),
    fortran=st.booleans(),
)
def test_an_array_is_what_numpy_loads(values: np.ndarray, fortran: bool, tmp_path: Path) -> None:
    path = tmp_path / "data.npy"
    np.save(path, np.asfortranarray(values) if fortran else values)
    loaded = np.load(path, allow_pickle=False)
    opened = open_array(path)
    assert opened.dtype == loaded.dtype
    assert opened.shape == loaded.shape
    assert opened.tobytes() == loaded.tobytes()
    assert not opened.flags.writeable
    header = read_header(path)
    assert (header.shape, header.dtype) == (loaded.shape, loaded.dtype)
    assert header.length == path.stat().st_size


def test_a_file_that_changes_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "data.npy"
    np.save(path, np.arange(6, dtype="<u2"))
    assert open_array(path).shape == (6,)
    np.save(path, np.arange(9, dtype="<u2"))
    assert open_array(path).tolist() == list(range(9))


def test_a_header_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data.npy"
    np.save(path, np.arange(6, dtype="<u2"))
    open_array(path)
    monkeypatch.setattr(arrays, "read_header", None)
    assert open_array(path).tolist() == list(range(6))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")
def test_an_array_keeps_no_more_than_its_map_open_and_that_only_while_it_lives(
    tmp_path: Path,
) -> None:
    path = tmp_path / "data.npy"
    np.save(path, np.arange(6, dtype="<u2"))
    before = len(os.listdir("/proc/self/fd"))
    held = [open_array(path) for _ in range(50)]
    assert len(os.listdir("/proc/self/fd")) <= before + len(held)
    del held
    assert len(os.listdir("/proc/self/fd")) == before


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="never loaded"):
        open_array(path)


@pytest.mark.parametrize("kept", [0, 3, 7, 40, 135])
def test_a_file_that_is_cut_off_is_said_to_be(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "data.npy"
    np.save(path, np.arange(6, dtype="<u2"))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(EOFError, match=str(kept)):
        open_array(path)


def test_what_is_no_array_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.npy"
    path.write_bytes(b"PK\x03\x04 an archive, say")
    with pytest.raises(ValueError, match="magic"):
        open_array(path)
    path.write_bytes(b"\x93NUMPY\x03\x00" + b" " * 80)
    with pytest.raises(ValueError, match=r"version 3\.0"):
        open_array(path)
