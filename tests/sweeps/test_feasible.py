"""What cannot be built is refused before the first job trains, in whichever job it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from flair2_exp.sweeps.plan import UNCHECKED
from tests.commands import answer

SWEEP = ("--multirun", "preset=debug", "trainer=cpu", "tracking=off", "sweep.name=s")
DRY_RUN = "sweep.dry_run=true"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("model=unet model.encoder=resnet34,resnet35", "model.encoder=resnet35"),
        ("model=unet optimizer._target_=torch.optim.SGD,torch.optim.Nope", "torch.optim.Nope"),
        ("model=unet +optimizer.options.speed=1,2 seed=1", "speed"),
    ],
)
def test_what_torch_would_refuse_in_the_last_job_is_refused_before_the_first(
    line: str, message: str, tmp_path: Path
) -> None:
    dry = answer(*SWEEP, *line.split(), DRY_RUN)
    assert dry.status == 0
    assert dry.out.rstrip().endswith(UNCHECKED)
    done = answer(*SWEEP, *line.split())
    assert done.status == 1
    assert message in done.err
    assert len(done.err.strip().splitlines()) <= 3, done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "utae.encoder_widths=[24,64,128,128] utae.decoder_widths=[24,64,128,128] "
            "utae.heads=8,16",
            "utae.heads=16 does not divide 24",
        ),
        (
            "model=unet trainer.strategy=auto,fsdp",
            "trainer.strategy=fsdp: expected one of auto, ddp",
        ),
        ("scheduler=none,plateau scheduler.warmup_epochs=2", "scheduler=plateau has no warm-up"),
        ("model=unet dataset.sample.patch_size=64,100", "model=unet takes multiples of 32"),
    ],
)
def test_what_needs_no_torch_is_refused_by_a_dry_run_already(
    line: str, message: str, tmp_path: Path
) -> None:
    done = answer(*SWEEP, *line.split(), DRY_RUN)
    assert done.status == 1
    assert message in done.err
    assert len(done.err.strip().splitlines()) <= 2, done.err
    assert list(tmp_path.iterdir()) == []
