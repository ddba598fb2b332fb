from __future__ import annotations

import pytest
import torch
from benchmarks import model
from benchmarks.inputs import series_inputs

from flair2_exp.errors import DeviceError


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_the_gpu_mode_refuses_a_machine_without_one() -> None:
    threads = torch.get_num_threads()
    with pytest.raises(DeviceError, match="needs a CUDA device"):
        model.main(["--gpu", "--threads", str(threads)])


def test_the_series_of_the_benchmark_are_padded_as_asked() -> None:
    inputs = series_inputs(6, real=2)
    assert inputs["padding"].tolist() == [[False] * 2 + [True] * 4] * 2
    assert not inputs["series"][inputs["padding"]].any()
    assert inputs["series"][~inputs["padding"]].flatten(1).any(1).all()
