from __future__ import annotations

import pytest
import torch

from benchmarks.harness import main
from benchmarks.inputs import series_inputs


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_the_gpu_mode_refuses_a_machine_without_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "--gpu", "--threads", str(torch.get_num_threads())]) == 1
    assert "needs a CUDA device" in capsys.readouterr().err


def test_the_series_of_the_benchmark_are_padded_as_asked() -> None:
    inputs = series_inputs(6, real=2)
    assert inputs["padding"].tolist() == [[False] * 2 + [True] * 4] * 2
    assert not inputs["series"][inputs["padding"]].any()
    assert inputs["series"][~inputs["padding"]].flatten(1).any(1).all()
