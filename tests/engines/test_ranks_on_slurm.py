"""Processes that a real srun starts: counted, in one folder, and ended together."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flair2_exp.compat import within_epoch
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import FAILED, KILLED, read_metrics
from flair2_exp.training.checkpoint import read_checkpoint
from tests.devices import MODULE, start
from tests.lifecycle.helpers import record_of, scores

pytestmark = [pytest.mark.engines, pytest.mark.usefixtures("cluster")]
SRUN = ("srun", "--quiet", "--export=ALL", "-n", "2", *MODULE)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("srun")


def test_one_task_for_two_devices_is_refused_and_nothing_is_written(place: Path) -> None:
    ended = start(place, "paths.output=refused", by=("srun", "--quiet", "-n", "1", *MODULE))
    assert ended.status == 1
    assert "trainer.devices=2 needs 2 processes; srun has started 1 process." in ended.err
    assert not (place / "refused").exists()


def test_two_tasks_train_in_one_folder_what_two_processes_of_one_command_do(place: Path) -> None:
    ended = start(place, "paths.output=outputs", by=SRUN)
    assert ended.status == 0, ended.err
    (folder,) = (place / "outputs" / "unet").iterdir()
    assert folder.name.startswith("slurm-")
    assert folder.name.endswith(".0")
    found = RunFolder(folder)
    # What Lightning's own requeueing leaves is not started from, under SLURM either.
    (place / "foreign").mkdir()
    shutil.copy(found.last, place / "foreign" / "hpc_ckpt_1.ckpt")
    alone = start(place, "hydra.run.dir=foreign", by=SRUN)
    assert alone.status == 0, alone.err
    here = start(place, "hydra.run.dir=here")
    assert here.status == 0, here.err
    expected = scores(read_metrics(RunFolder(place / "here")))
    assert scores(read_metrics(found)) == expected
    assert scores(read_metrics(RunFolder(place / "foreign"))) == expected
    assert expected["train/epochs"] == 2


@pytest.mark.parametrize(
    ("strike", "status", "says"),
    [
        ("1 0 1 SIGTERM", 143, ""),
        ("1 0 1 SIGKILL", 137, "process 1 of 2 ended: it said nothing"),
        ("0 0 1 error", 1, "the patch is damaged"),
    ],
)
def test_what_ends_one_task_ends_both(strike: str, status: int, says: str, place: Path) -> None:
    folder = RunFolder(place / strike.replace(" ", "_"))
    ended = start(place, f"hydra.run.dir={folder.path}", by=SRUN, strike=strike)
    assert ended.status == status, ended.err
    assert says in ended.err
    record = record_of(folder.path)
    assert record.status == (KILLED if status == 143 else FAILED)
    if status == 143:
        assert within_epoch(read_checkpoint(folder.last))


def test_a_task_that_is_refused_keeps_no_other_waiting(place: Path) -> None:
    # The first one alone asks the store, and holds the folder's lock.
    (place / "held").mkdir()
    ended = start(
        place, "hydra.run.dir=held", "tracking=server", "tracking.uri=http://127.0.0.1:9",
        "tracking.timeout=1", "tracking.enabled=true", by=SRUN,
    )  # fmt: skip
    assert ended.status == 1
    assert "127.0.0.1:9" in ended.err
    assert ended.seconds < 90
