"""`resume=FOLDER`, and what is shown while a run trains: on a terminal, and without one."""

from __future__ import annotations

import csv
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import read_metrics
from flair2_exp.signals import FINISHED, KILLED
from flair2_exp.sweeps.launching import Batches
from flair2_exp.tracking.tags import Tag
from tests.commands import answer
from tests.configs import SMALL_SAMPLE
from tests.lifecycle.helpers import die_at_the_end_of, record_of

ROOT = Path(__file__).parents[2]
SMALL = (
    "preset=debug", "trainer=cpu", "tracking=off", "model=unet", "data=aerial_only",
    "trainer.max_epochs=2", "scheduler=none", *SMALL_SAMPLE,
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two epochs that was killed after the first one."""
    from tests.lifecycle.helpers import Killed

    place = tmp_path_factory.mktemp("resume")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        die_at_the_end_of(0, patch)
        with pytest.raises(Killed):
            answer(*SMALL, "hydra.run.dir=run", "callbacks.panel.patches=2")
    (place / "sweep").mkdir()
    (place / "sweep" / "multirun.yaml").touch()
    return place


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # paths of the config are of where the run was begun


def epochs_of(folder: RunFolder) -> list[int]:
    with folder.history.open(encoding="utf-8", newline="") as file:
        return [int(row["epoch"]) for row in csv.DictReader(file)]


REFUSED = [
    ("resume=nowhere", "resume=nowhere: there is no such folder."),
    ("resume={place}", "it holds no run (no readable run.json)"),
    ("resume={sweep}", "is many runs: a sweep or a search resumes by its own command"),
    ("resume={run} hydra.mode=RUN", "hydra.mode=RUN: resume={run} takes the run's own config"),
    ("resume={run} seed=2", "seed=2: resume={run} takes the run's own config"),
    ("resume={run} trainer.max_epochs=1", "is a run of 2 epochs, and can get more, not fewer"),
    ("resume={run} trainer.max_epochs=many", "expected a whole number"),
    ("resume={run} hydra.run.dir=x", "hydra.run.dir=x: resume={run} takes"),
    ("resume={run} resume={run}", "names one folder"),
    ("--multirun resume={run}", "is one run; a sweep or a search resumes by its own command"),
    ("resume={run} sweep=leaderboard", "is one run; a sweep"),
    ("resume={run} tune=unet", "is one run; a sweep"),
    ("--cfg job resume={run}", "takes no flags"),
]


@pytest.mark.parametrize(("line", "message"), REFUSED, ids=[each for each, _ in REFUSED])
def test_what_cannot_resume_is_refused_before_anything_is_announced(
    line: str, message: str, place: Path, tmp_path: Path
) -> None:
    names = {"place": place, "run": place / "run", "sweep": place / "sweep"}
    before = record_of(place / "run")
    done = answer(*line.format(**names).split())
    assert done.status in (1, 2)
    assert message.format(**names) in done.err
    assert len(done.err.splitlines()) <= 2
    assert not done.out
    assert record_of(place / "run") == before
    assert not list(tmp_path.iterdir())


def test_a_folder_is_enough_to_resume_and_more_epochs_may_follow(place: Path) -> None:
    folder = RunFolder(place / "run")
    done = answer(f"resume={folder}")
    assert done.status == 0, done.err
    assert f"of {folder.last}, from which the run resumes" in done.out
    assert "epochs    2, batches of 2, or until 30 in a row are no better; 1 is done" in done.out
    assert "epoch 1/2" not in done.out
    assert "epoch 2/2" in done.out
    assert record_of(folder.path).status == FINISHED
    assert epochs_of(folder) == [1, 2]
    overrides = (folder.hydra / "overrides.yaml").read_text(encoding="utf-8")
    assert "preset=debug" in overrides  # what Hydra kept of the first command

    again = answer(f"resume={folder}")
    assert again.status == 0
    more = f"; to train it further: flair2-exp resume={folder} trainer.max_epochs=N"
    assert again.out == f"finished before: {folder}{more}\n"
    before = record_of(folder.path).identity
    longer = answer(f"resume={folder}", "trainer.max_epochs=3")
    assert longer.status == 0, longer.err
    assert "epoch 2/3" not in longer.out
    assert "epoch 3/3" in longer.out
    assert epochs_of(folder) == [1, 2, 3]
    record = record_of(folder.path)
    assert (record.status, record.deciding["trainer.max_epochs"]) == (FINISHED, 3)
    assert record.identity != before
    metrics = read_metrics(folder)
    assert metrics["train/epochs"] == 3
    assert 1 <= metrics["best/epoch"] <= 3
    log = folder.log.read_text(encoding="utf-8")
    assert len(re.findall(r"epoch \d/\d train/loss=", log)) == 3


def killed(*words: str) -> None:
    """Give a command whose training dies after its first epoch."""
    from tests.lifecycle.helpers import Killed

    with pytest.MonkeyPatch.context() as patch:
        die_at_the_end_of(0, patch)
        with pytest.raises(Killed):
            answer(*words)


def test_a_job_of_a_sweep_resumes_by_itself_and_stays_the_sweeps(tmp_path: Path) -> None:
    killed("--multirun", *SMALL, "sweep.name=two", "seed=1,2", "hydra.job.name=mine")
    folder = RunFolder(tmp_path / "multirun" / "two" / "0_unet_seed=1")
    done = answer("resume=multirun/two/0_unet_seed=1/")
    assert done.status == 0, done.err
    assert "epoch 1/2" not in done.out
    record = record_of(folder.path)
    assert (record.status, record.tags[Tag.SWEEP]) == (FINISHED, "two")
    assert epochs_of(folder) == [1, 2]
    assert [path.name for path in folder.path.glob("*.log")] == ["mine.log"]


def test_a_run_with_a_network_of_ones_own_resumes_and_runs_again_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "my crops"
    (project / "conf" / "model").mkdir(parents=True)
    (project / "crop_nets.py").write_text(
        "from torch import nn\n\nclass Net(nn.Module):\n"
        "    def __init__(self, bands, classes):\n        super().__init__()\n"
        "        self.layer = nn.Conv2d(bands, classes, 1)\n"
        "    def forward(self, image):\n        return self.layer(image)\n"
    )
    (project / "conf" / "model" / "crop.yaml").write_text(
        "name: crop\n_target_: crop_nets.Net\nreads: [aerial]\npatch_multiple: 1\n"
    )
    words = [each for each in SMALL if each != "model=unet"]
    own = ("--config-dir", str(project / "conf"), "model=crop", "hydra.run.dir='my runs/a b'")
    killed(*own, *words)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)

    def given(*command: str) -> str:
        sys.modules.pop("crop_nets")  # as in a process of its own
        done = answer(*command)
        assert done.status == 0, done.err
        return done.out

    assert "epoch 2/2" in given("resume=../my runs/a b")
    assert epochs_of(RunFolder(tmp_path / "my runs" / "a b")) == [1, 2]
    assert "Nothing has changed since" in given("rerun", "../my runs/a b", "--out", "the same")
    again = RunFolder(elsewhere / "the same")
    assert "model=crop" in (again.hydra / "overrides.yaml").read_text("utf-8")
    assert "crop_nets.Net" in (again.hydra / "config.yaml").read_text("utf-8")
    assert "epoch 3/3" in given("resume=the same", "trainer.max_epochs=3")


@pytest.mark.parametrize(
    ("name", "same"), [("sweep.name=mine", "the same command resumes"), ("", "sweep.name=")]
)
def test_an_interrupted_sweep_says_how_far_it_is_and_what_resumes_it(
    name: str, same: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Batches, "run", interrupted)
    words = [*SMALL, *([name] if name else [])]
    done = answer("--multirun", *words, "seed=1,2")
    assert done.status == 130
    last = done.err.splitlines()[-1]
    assert last.startswith("flair2-exp: interrupted; 0 of 2 jobs done; the same command")
    assert same in last


def terminal(place: Path, *words: str, strike: str = "") -> tuple[int, str]:
    """Run a command on a pseudo-terminal; press Ctrl-C once a text has appeared."""
    master, slave = pty.openpty()
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TERM": "xterm",
        "COLUMNS": "200",
    }  # fmt: skip
    command = subprocess.Popen(
        [sys.executable, "-m", "flair2_exp", *words], cwd=place, env=environment,
        stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    shown = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        shown += part
        if strike and strike in shown.decode("utf-8", "replace"):
            os.killpg(command.pid, signal.SIGINT)
            strike = ""
        if not part:
            break
    os.close(master)
    return command.wait(timeout=60), shown.decode("utf-8", "replace")


@pytest.mark.slow
def test_a_terminal_shows_bars_and_a_line_per_epoch_and_ctrl_c_ends_with_what_resumes(
    tmp_path: Path,
) -> None:
    long = [each for each in SMALL if "max_epochs" not in each]
    status, shown = terminal(
        tmp_path, *long, "trainer.max_epochs=1000", "hydra.run.dir=run", strike="epoch 3/1000"
    )
    assert status == 130, shown
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert "epoch 1 of 1000 " in plain  # the bar
    for epoch in (1, 2, 3):  # each on a line of its own, none within a bar
        assert re.search(rf"[\r\n]epoch {epoch}/1000 train/loss=\S+ val/loss=.*left\)\r\n", plain)
    assert "v_num" not in plain
    assert "3/2 batches" not in plain
    last = plain.strip().splitlines()[-1]
    folder = RunFolder(tmp_path / "run")
    assert last == f"flair2-exp: interrupted; this resumes: flair2-exp resume={folder}"
    assert record_of(folder.path).status == KILLED
    log = folder.log.read_text(encoding="utf-8")
    assert "epoch 3/1000" in log
    assert log.startswith("[")
    assert "network   unet" in log
