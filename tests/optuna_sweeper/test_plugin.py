"""The sweeper as Hydra sees it: its registration, and Hydra's own contract tests."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.test_utils.launcher_common_tests import (
    BatchedSweeperTestSuite,
    IntegrationTestSuite,
    LauncherTestSuite,
)
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flair2_exp import optuna_sweeper
from flair2_exp.optuna_sweeper import register
from flair2_exp.optuna_sweeper.plugin import OptunaStudySweeper
from flair2_exp.optuna_sweeper.worker import JOB

ROOT = str(Path(__file__).parents[2])
# A sweep as Hydra's basic sweeper has it: all combinations, in order, in one batch.
GRID = ["hydra/sweeper=optuna_study", "hydra/sweeper/sampler=grid", "hydra/sweeper/pruner=none"]
ONE_BATCH = [*GRID, "hydra.sweeper.n_jobs=10"]


@pytest.fixture(autouse=True)
def _registered() -> None:
    """Hydra's tests start with fresh plugins each time, without those registered by hand."""
    register()


@pytest.mark.parametrize(("launcher_name", "overrides"), [("basic", ONE_BATCH)])
class TestContract(LauncherTestSuite):
    pass


@pytest.mark.parametrize(
    ("launcher_name", "overrides"), [("basic", [*GRID, "hydra.sweeper.n_jobs=2"])]
)
class TestContractInBatches(BatchedSweeperTestSuite):
    pass


@pytest.mark.slow
@pytest.mark.parametrize(("task_launcher_cfg", "extra_flags"), [({}, ["-m", *ONE_BATCH])])
class TestContractOfWholeProcesses(IntegrationTestSuite):
    """Hydra's applications know nothing of the sweeper: it is imported before they run.

    One of the tests runs its command twice and expects it to start over: so a study for each.
    """

    def generate_custom_cmd(self) -> Callable[..., list[str]]:
        def command(cmd: list[str], filename: str) -> list[str]:
            code = (
                f"import runpy, sys; sys.path.insert(0, {ROOT!r}); "
                "import flair2_exp.optuna_sweeper; "
                "import tempfile; study = tempfile.mkdtemp(dir='.') + '/journal'; "
                "sys.argv = [*sys.argv[1:], f'hydra.sweeper.storage={study}']; "
                "runpy.run_path(sys.argv[0], run_name='__main__')"
            )
            position = next(i for i, word in enumerate(cmd) if word.endswith(filename))
            return [*cmd[:position], "-c", code, *cmd[position:]]

        return command


def test_hydra_knows_the_sweeper() -> None:
    register()
    assert OptunaStudySweeper in Plugins.instance().discover(Sweeper)
    assert Plugins.instance().discover(Sweeper).count(OptunaStudySweeper) == 1


def test_registering_imports_nothing_heavy() -> None:
    code = (
        "import sys; import flair2_exp.optuna_sweeper\n"
        "heavy = {'optuna', 'sqlalchemy', 'numpy', 'torch', 'mlflow'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def sweeper() -> Any:
    """Composes the sweeper's config."""
    with initialize(version_base="1.3", config_path=None):

        def composed(*overrides: str) -> Any:
            arguments = ["hydra/sweeper=optuna_study", *overrides]
            return compose(overrides=arguments, return_hydra_config=True).hydra.sweeper

        yield composed


def test_the_default_is_tpe_with_median_pruning(sweeper: Any) -> None:
    config = sweeper()
    assert config.sampler._target_ == "optuna.samplers.TPESampler"
    assert config.sampler.constant_liar is True
    assert config.pruner._target_ == "optuna.pruners.MedianPruner"


@pytest.mark.parametrize(
    ("sampler", "pruner"),
    [
        ("tpe", "median"),
        ("random", "none"),
        ("grid", "hyperband"),
        ("cmaes", "median"),
        ("nsgaii", "none"),
        ("gp", "median"),
    ],
)
def test_every_sampler_and_pruner_can_be_built(sweeper: Any, sampler: str, pruner: str) -> None:
    from flair2_exp.optuna_sweeper.components import SamplerFactory, build_pruner

    if sampler == "gp":
        pytest.importorskip("torch")
    config = OmegaConf.to_container(
        sweeper(f"hydra/sweeper/sampler={sampler}", f"hydra/sweeper/pruner={pruner}")
    )
    assert isinstance(config, dict)
    build_pruner(config["pruner"])
    factory = SamplerFactory(config["sampler"])
    assert type(factory(0)) is type(factory(1))


@pytest.mark.parametrize("override", ["n_trails=3", "n_trials=many", "params=3"])
def test_the_config_is_typed(sweeper: Any, override: str) -> None:
    from hydra.errors import HydraException

    with pytest.raises((HydraException, OmegaConfBaseException)):
        sweeper(f"hydra.sweeper.{override}")


def test_a_job_in_another_process_reports_and_is_pruned(
    hydra_restore_singletons: None, hydra_sweep_runner: Any, tmpdir: Path
) -> None:
    """Through joblib's processes, with reports that only the study's storage can carry."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")

    def task(config: Any) -> float:
        import os

        from flair2_exp.optuna_sweeper.trial import current_trial

        trial = current_trial()
        assert trial is not None
        trial.report(float(os.getpid()), 1)
        trial.report(config.bar, 2)
        return float(config.bar)

    overrides = [
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
        *GRID,
        "hydra.sweeper.n_jobs=2",
        "bar=1,9,2,8",
        "hydra.sweeper.pruner._target_=optuna.pruners.ThresholdPruner",
        "+hydra.sweeper.pruner.upper=7",
        "+hydra.sweeper.pruner.n_warmup_steps=1",
        f"hydra.sweeper.storage={tmpdir}/../study.journal",
    ]
    sweep = hydra_sweep_runner(
        calling_file=None,
        calling_module="hydra.test_utils.a_module",
        task_function=task,
        config_path="configs",
        config_name="compose.yaml",
        overrides=overrides,
        temp_dir=tmpdir,
    )
    with sweep:
        import os

        from tests.optuna_sweeper.toy import states, trials_of

        trials = trials_of(str(Path(tmpdir).parent / "study.journal"), "a_module")
    assert states(trials) == ["COMPLETE", "PRUNED", "COMPLETE", "PRUNED"]
    for trial in trials:
        assert trial.user_attrs[JOB]["pid"] == trial.intermediate_values[1]
    assert all(t.intermediate_values[1] != os.getpid() for t in trials)
    assert [t.intermediate_values[2] for t in trials] == [1, 9, 2, 8]


# An application that has a copy of the folder, and no flair2_exp at all.
STRANGER = """
import sys
sys.modules["flair2_exp"] = None
import hydra
import searching
from hydra.core.config_store import ConfigStore
from searching.trial import current_trial

ConfigStore.instance().store("config", {
    "lr": 1.0,
    "defaults": ["_self_", {"override hydra/sweeper": "optuna_study"}],
    "hydra": {"sweep": {"dir": "search"},
              "sweeper": {"n_trials": 3, "params": {"lr": "tag(log,interval(1e-5,1e-1))"}}},
})

@hydra.main(version_base="1.3", config_path=None, config_name="config")
def main(cfg):
    current_trial().report(cfg.lr, 1)
    return cfg.lr

main()
"""


def test_the_folder_serves_any_application_under_any_name(tmp_path: Path) -> None:
    folder = Path(optuna_sweeper.__file__).parent
    shutil.copytree(folder, tmp_path / "searching", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "app.py").write_text(STRANGER)
    for total in (3, 4):  # the second command goes on with the first one's study
        command = [sys.executable, "app.py", "--multirun", f"hydra.sweeper.n_trials={total}"]
        subprocess.run(command, check=True, cwd=tmp_path)
    table = (tmp_path / "search" / "trials.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in table[1:]] == ["complete"] * 4
