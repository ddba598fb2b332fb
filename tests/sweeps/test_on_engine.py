"""A sweep whose jobs an engine runs: taken over, left alone, cancelled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra.core.utils import JobReturn
from omegaconf import OmegaConf, open_dict

from flair2_exp.config.engines import SlotsConfig
from flair2_exp.engines import watching
from flair2_exp.engines.engine import Engine
from flair2_exp.engines.job import JobCommand, Submission
from flair2_exp.engines.launcher import EngineLauncher
from flair2_exp.engines.pool import Pool
from flair2_exp.errors import ConfigError
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import FAILED
from flair2_exp.sweeps import ablation
from flair2_exp.sweeps.ablation import AblationSweeper, SweepFailedError
from tests.commands import answer
from tests.engines.made import Cluster, Made
from tests.sweeps.made import FIXED, SUBDIR, ends
from tests.sweeps.plans import OfTheSweep, of_sweep, sweep_config, sweep_folder

SEEDS = (1, 2, 3, 4)


class Swept:
    """A sweep over four seeds on a made cluster.

    Args:
        root: Where it goes.
        outlives: Whether jobs go on without the command.
    """

    def __init__(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, *, outlives: bool = True
    ) -> None:
        self.root = root
        self.failing: set[int] = set()
        self.cluster = Cluster(self._job)
        self.engine = Made(self.cluster, outlives=outlives)
        monkeypatch.setitem(watching.ENGINES, Made.name, ("", ""))
        monkeypatch.setattr(watching, "build_engine", self._engine_called)

    def _engine_called(self, name: str, options: Any = None) -> Engine:
        assert name == Made.name
        return self.engine

    def _job(self, command: JobCommand) -> None:
        seed = SEEDS[command.number]
        if seed in self.failing:
            ends(seed, command.folder.path, FAILED, "ValueError: a bug")
        else:
            ends(seed, command.folder.path)

    def run(self, *options: str) -> list[list[JobReturn]]:
        """Give the command, with options of the node `sweep`."""
        sweeper = AblationSweeper()
        config, loader = sweep_config(self.root, SUBDIR)
        sweeper.config_loader = OfTheSweep(loader, config)
        merged: Any = OmegaConf.merge(config, OmegaConf.from_dotlist(list(options)))
        with open_dict(merged):
            merged.hydra.launcher = {"_target_": "Launcher"}
        sweeper.config = merged
        sweeper.launcher = _Launcher(self.engine)
        return sweeper.sweep(["seed=1,2,3,4", *FIXED, *options, *of_sweep(self.root)])

    def folder(self, seed: int) -> RunFolder:
        """A job's."""
        return RunFolder(sweep_folder(self.root) / f"seed={seed}")

    def started(self) -> list[int]:
        """The seeds of all starts, in order."""
        return [SEEDS[command.number] for command in self.cluster.starts]


class _Launcher(EngineLauncher):
    name, group = Made.name, SlotsConfig

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine

    def pool(self) -> Pool:
        return Pool(self._engine, 2)


@pytest.fixture
def swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Swept:
    return Swept(tmp_path, monkeypatch)


def test_jobs_run_as_there_is_room_each_once(swept: Swept) -> None:
    swept.run()
    assert swept.started() == [1, 2, 3, 4]
    assert swept.cluster.most == 2
    swept.run()
    assert swept.started() == [1, 2, 3, 4]
    command = swept.cluster.starts[0].words
    assert command[0] == "--run"
    assert f"hydra.run.dir='{swept.folder(1)}'" in command
    assert "seed=1" in command


def test_a_failed_job_is_named_with_its_output_and_the_others_run(swept: Swept) -> None:
    swept.failing = {2}
    with pytest.raises(SweepFailedError, match=r"seed=2: ValueError: a bug\n.*output.log"):
        swept.run()
    assert swept.started() == [1, 2, 3, 4]
    swept.failing = set()
    swept.run()
    assert swept.started() == [1, 2, 3, 4, 2]


def test_after_a_failure_nothing_is_started_where_that_is_asked(swept: Swept) -> None:
    swept.failing, swept.cluster.room = {1}, 1
    with pytest.raises(SweepFailedError, match="not started"):
        swept.run("sweep.fail_fast=true")
    assert swept.started()[0] == 1
    assert len(swept.started()) < 4


def test_a_command_may_leave_and_come_back(
    swept: Swept, capsys: pytest.CaptureFixture[str]
) -> None:
    swept.cluster.room, swept.cluster.looks = None, lambda command: 1000
    swept.run("sweep.wait=false")
    assert "4 jobs are queued or running" in capsys.readouterr().out
    assert len(swept.cluster.at_work) == 4
    swept.run("sweep.wait=false")
    assert swept.started() == [1, 2, 3, 4]  # none twice
    for key, (command, _) in swept.cluster.at_work.items():
        swept.cluster.at_work[key] = (command, 0)
    swept.run()
    assert swept.started() == [1, 2, 3, 4]
    assert all(swept.folder(seed).metrics.exists() for seed in SEEDS)


def test_jobs_that_end_with_the_command_are_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept = Swept(tmp_path, monkeypatch, outlives=False)
    with pytest.raises(ConfigError, match=r"sweep\.wait=false: .* end with this command"):
        swept.run("sweep.wait=false")
    assert not sweep_folder(tmp_path).exists()


def test_cancelled_jobs_stay_so_until_they_are_asked_for(swept: Swept) -> None:
    folder = swept.folder(3)
    Submission(Made.name, "99", cancelled=True).write(folder)
    with pytest.raises(SweepFailedError, match=r"seed=3: cancelled; sweep\.cancelled=resume"):
        swept.run()
    assert swept.started() == [1, 2, 4]
    swept.run("sweep.cancelled=resume")
    assert swept.started() == [1, 2, 4, 3]


def test_jobs_at_work_on_another_engine_are_not_started_here(
    swept: Swept, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept.cluster.looks = lambda command: 1000
    swept.cluster.room = None
    swept.run("sweep.wait=false")
    monkeypatch.setattr(_Launcher, "name", "slots")
    with pytest.raises(ConfigError, match=r"running on made.*hydra/launcher=made") as refused:
        swept.run()
    assert len(str(refused.value).splitlines()) <= 2


def test_a_job_that_trained_something_else_than_planned_is_not_taken_for_it(swept: Swept) -> None:
    def another(command: JobCommand) -> None:
        ends(SEEDS[command.number] + 1, command.folder.path)

    swept.cluster.job = another
    with pytest.raises(SweepFailedError, match="holds a run of another experiment"):
        swept.run()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "this machine's GPUs would hold 4: hydra/launcher=slots"),
        (("trainer=ddp", "trainer.devices=2"), "this machine's GPUs would hold 2"),
        (("trainer=ddp",), ""),  # each job takes all GPUs
        (("trainer=cpu",), ""),
        (("hydra/launcher=slots",), ""),
    ],
)
def test_a_plan_says_where_gpus_would_idle(
    options: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablation, "visible_gpus", lambda: ["GPU-a", "GPU-b", "GPU-c", "GPU-d"])
    words = ("--multirun", "seed=1,2", "sweep.dry_run=true", f"paths.root={tmp_path}")
    plan = answer(*words, *options)
    assert plan.status == 0, plan.err
    assert says in plan.out
    assert says or "GPUs would hold" not in plan.out
