"""Two processes that train one network: they begin, stop, resume, fail and end together."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from flair2_exp.compat import within_epoch
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import FAILED, KILLED, read_metrics
from flair2_exp.training.checkpoint import read_checkpoint
from tests.devices import SRUN, TORCHRUN, start
from tests.lifecycle.helpers import record_of, scores

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands are given; they share a sample."""
    return tmp_path_factory.mktemp("devices")


@pytest.fixture(scope="module")
def whole(place: Path) -> dict[str, float]:
    """The scores of two processes that nothing interrupts."""
    done = start(place, "hydra.run.dir=whole")
    assert done.status == 0, done.err
    folder = RunFolder(place / "whole")
    assert record_of(folder.path).is_done(test=True)
    assert len(folder.history.read_text().splitlines()) == 3
    return scores(read_metrics(folder))


@pytest.mark.thorough
def test_a_signal_to_either_process_stops_both_within_the_epoch_and_they_resume_exactly(
    place: Path, whole: dict[str, float]
) -> None:
    folder = RunFolder(place / "stopped")
    strikes = (("0 0 1 SIGINT", 130), ("1 1 0 SIGTERM", 143), ("all 1 1 SIGTERM", 143))
    for strike, status in strikes:
        ended = start(place, "hydra.run.dir=stopped", strike=strike)
        assert ended.status == status, ended.err
        assert record_of(folder.path).status == KILLED
        assert within_epoch(read_checkpoint(folder.last))
        assert "Traceback" not in ended.err
    tested = start(place, "hydra.run.dir=stopped", strike="1 test 0 SIGTERM")
    assert tested.status == 143, tested.err
    assert record_of(folder.path).status == KILLED
    done = start(place, "hydra.run.dir=stopped")
    assert done.status == 0, done.err
    assert scores(read_metrics(folder)) == whole


@pytest.mark.thorough
@pytest.mark.parametrize("by", [SRUN, TORCHRUN], ids=["srun", "torchrun"])
def test_processes_that_others_start_resume_by_the_folder_alone_and_train_for_longer(
    by: tuple[str, ...], place: Path
) -> None:
    folder = RunFolder(place / f"by {len(by)}")
    ended = start(place, f"hydra.run.dir='{folder}'", strike="1 1 1 SIGTERM", by=by)
    assert record_of(folder.path).status == KILLED, ended.err
    longer = (f"resume={folder.path.name}", "trainer.max_epochs=3")
    done = start(place, *longer, by=by, common=())
    assert done.status == 0, done.err
    assert "2 x processor" in done.out
    assert record_of(folder.path).is_done(test=True)
    assert [line.split(",")[0] for line in folder.history.read_text().splitlines()[1:]] == [
        "1", "2", "3",
    ]  # fmt: skip
    assert "epoch 1/3" not in done.out


@pytest.mark.parametrize(
    ("strike", "status", "says"),
    [
        ("1 0 1 SIGKILL", 1, "process 1 of 2 ended: it said nothing: killed"),
        ("1 0 1 error", 1, "process 1 of 2 ended: the patch is damaged"),
        pytest.param(
            "0 0 1 SIGKILL",
            -9,
            "process 0 of 2 ended: it said nothing: killed",
            marks=pytest.mark.thorough,
        ),
        pytest.param(
            "0 0 1 bug", 1, "ValueError: no patch is that large", marks=pytest.mark.thorough
        ),
    ],
)
def test_where_one_process_fails_both_end_and_say_why(
    strike: str, status: int, says: str, place: Path, whole: dict[str, float]
) -> None:
    name = strike.replace(" ", "_")
    ended = start(place, f"hydra.run.dir={name}", strike=strike)
    assert ended.status == status, ended.err
    assert says in ended.err
    assert ended.seconds < 60
    if status > 0:
        assert record_of(place / name).status == FAILED
    assert ("Traceback" in ended.err) == ("bug" in strike), ended.err


@pytest.mark.thorough
def test_the_script_trains_on_several_devices_without_being_given_a_folder(
    place: Path, whole: dict[str, float]
) -> None:
    script = Path(sys.executable).with_name("flair2-exp")
    code = "import sys; from flair2_exp.cli.main import main; sys.exit(main())"
    by = (str(script),) if script.exists() else (sys.executable, "-c", code)
    done = start(place, "paths.output=single", by=by)
    assert done.status == 0, done.err
    (folder,) = (place / "single" / "unet").iterdir()
    assert scores(read_metrics(RunFolder(folder))) == whole


@pytest.mark.thorough
def test_the_jobs_of_a_sweep_train_on_several_devices_one_after_the_other(place: Path) -> None:
    both = start(place, "--multirun", "seed=1,2", "sweep.name=both", "trainer.max_epochs=1")
    assert both.status == 0, both.err
    folders = sorted((place / "multirun" / "both").glob("*_seed=*"))
    assert len(folders) == 2
    assert all(record_of(each).is_done(test=True) for each in folders)
