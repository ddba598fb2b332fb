"""Work in forked processes: what comes back, and what stops it."""

from __future__ import annotations

import os

import pytest

from flair2_exp.data.forked import forked
from flair2_exp.errors import DamagedPatchError, DataError


@pytest.mark.parametrize("workers", [1, 3])
def test_a_result_comes_of_each_item_whatever_the_number_of_processes(workers: int) -> None:
    shared = object()  # which could not be sent
    results = forked(lambda n: (n, id(shared)), range(20), workers, died="")
    assert sorted(results) == [(n, id(shared)) for n in range(20)]


def test_what_the_work_raises_is_raised_here() -> None:
    def work(number: int) -> int:
        if number == 3:
            raise DamagedPatchError("patch 3")
        return number

    with pytest.raises(DamagedPatchError, match="patch 3"):
        list(forked(work, range(6), 2, died=""))


def test_a_process_that_dies_is_named_and_waited_for_no_longer() -> None:
    with pytest.raises(DataError, match="one died"):
        list(forked(lambda _: os._exit(9), range(4), 2, died="one died"))
