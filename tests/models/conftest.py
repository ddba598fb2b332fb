"""Shared by the tests of networks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def both_cores() -> Iterator[None]:
    """For whole U-T&Ts on 512 px, which take long on the one thread that a test has."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
