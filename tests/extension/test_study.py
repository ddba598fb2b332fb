"""A study of one's own, all of it outside of the package: swept, killed, resumed, tuned, reported.

The code in `outside/` imports of this package what the documentation names, and nothing here is
registered anywhere.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import RunRecord
from tests.commands import answer

CONF = Path(__file__).parent / "outside" / "conf"
TINY = ("preset=tiny", "trainer=cpu", "trainer.max_epochs=3", "data.workers=0", "trainer.threads=1")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def _command(root: Path, *words: str) -> tuple[str, ...]:
    return ("--config-dir", str(CONF), *words, *TINY, f"paths.root={root}")


def _scores(folder: Path) -> dict[str, float]:
    scores = json.loads(RunFolder(folder).metrics.read_text())
    return {name: value for name, value in scores.items() if "seconds" not in name}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("own")
    done = answer(*_command(root, "sweep=own"))
    assert done.status == 0, done.err
    return root


def _report(root: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(
        (root / "multirun/own/report/leaderboard.json").read_text()
    )
    return content


def test_own_parts_stand_beside_the_u_net_in_a_report_with_intervals(swept: Path) -> None:
    report = _report(swept)
    rows = {row["row"]: row for row in report["rows"]}
    assert set(rows) == {"unet", "net"}
    for row in rows.values():
        assert row["miou_low"] < row["miou_value"] < row["miou_high"]
    record = RunRecord.read(RunFolder(swept / "multirun/own/net/seed=1"))
    assert record is not None
    deciding = record.deciding
    assert deciding["code.outside"].startswith("sha256:")
    assert deciding["model.options.width"] == 8
    assert deciding["loss.options.bound"] == 0.95
    assert deciding["dataset.options.seed"] == 3


def test_own_metrics_are_logged_and_own_callbacks_have_run(swept: Path) -> None:
    for model in ("unet", "net"):
        folder = swept / "multirun/own" / model / "seed=2"
        scores = _scores(folder)
        assert scores["test/wrong"] == pytest.approx(100 * (1 - scores["test/accuracy"]))
        assert 0 <= scores["val/wrong"] <= 100
        assert int((folder / "batches.txt").read_text()) == 3 * 2  # 12 patches in batches of 8


def test_the_code_is_kept_with_the_run(swept: Path) -> None:
    kept = {path.name for path in (swept / "mlruns").rglob("code/outside/*.py")}
    assert {"nets.py", "losses.py", "metrics.py", "callbacks.py", "data.py"} <= kept


def test_the_same_command_finds_its_runs_done_and_changed_code_is_noticed(
    swept: Path, tmp_path: Path
) -> None:
    planned = answer(*_command(swept, "sweep=own", "sweep.dry_run=true"))
    assert "6 jobs, 6 done" in planned.out, planned.err
    study = tmp_path / "outside"
    subprocess.run(["cp", "-r", str(CONF.parent), str(study)], check=True)
    (study / "nets.py").write_text((study / "nets.py").read_text() + "\n# changed\n")
    code = "import sys; from flair2_exp.cli.main import main; main(sys.argv[1:])"
    words = _command(swept, "sweep=own", "sweep.dry_run=true")
    again = [word.replace(str(CONF), str(study / "conf")) for word in words]
    done = subprocess.run(
        [sys.executable, "-c", code, *again], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "holds a run of other code: outside has changed since" in done.stderr


@pytest.mark.thorough
def test_a_killed_run_resumes_and_ends_as_one_that_was_not(swept: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "flair2_exp",
        *_command(tmp_path, "sweep=own", "model=net", "seed=1", "data.workers=1"),
    ]  # fmt: skip
    folder = RunFolder(tmp_path / "multirun/own/net/seed=1")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    until = time.monotonic() + 240
    while not folder.last.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    record = RunRecord.read(folder)
    assert record is not None
    assert record.status != "FINISHED", "it was killed too late"
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "from which the run resumes" in done.stdout + done.stderr
    assert _scores(folder.path) == _scores(swept / "multirun/own/net/seed=1")
    assert (folder.path / "batches.txt").read_text() == "6"


@pytest.mark.thorough
def test_workers_of_a_launcher_find_own_code(swept: Path, tmp_path: Path) -> None:
    command = _command(tmp_path, "sweep=own", "model=net", "seed=1,2")
    parallel = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    done = subprocess.run(
        [sys.executable, "-m", "flair2_exp", *command, *parallel],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for seed in (1, 2):
        folder = f"multirun/own/net/seed={seed}"
        assert _scores(tmp_path / folder) == _scores(swept / folder)


def test_own_options_are_tuned_by_an_own_metric(tmp_path: Path) -> None:
    done = answer(*_command(tmp_path, "tune=net"))
    assert done.status == 0, done.err
    trials = (tmp_path / "multirun/tune_net/trials.csv").read_text().splitlines()
    assert len(trials) == 4
    assert "model.options.width" in trials[0]
    assert "loss.options.bound" in trials[0]
    best = (tmp_path / "multirun/tune_net/experiment/best.yaml").read_text()
    assert "width:" in best


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("model=nett",), "model=nett: no such option; did you mean net"),
        (("model=net", "model.options.widht=3"), "did you mean width?"),
        (("model=net", "model.options.width=wide"), r"model.options.width=wide: input should be"),
        (("model=net", "loss.options.bound=high"), "loss.options.bound=high: input should be"),
        (("model=net", "+loss.options.bond=1"), "has no such option; did you mean bound?"),
        (("model=net", "dataset.options.seed=x"), "dataset.options.seed=x: input should be"),
        (("model=net", "data.bands=[red,nir]"), "nir"),
        (("model=utt", "data=aerial_s2"), "stripes"),
        (("model=net", "metric.further.wrong.scale=x"), "metric.further.wrong.scale=x: input"),
        (("model=net", "+callbacks.count.every=3"), "callbacks.count.every"),
        (("model=net", "metric.further.wrong._target_=outside.metrics.Wrongg"), "mean Wrong?"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else "",
)
def test_a_mistake_in_own_parts_costs_two_lines_and_leaves_nothing(
    words: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    told = answer(
        *_command(
            tmp_path, "dataset=stripes", "data=aerial_only", "loss=hinge", "callbacks=count",
            "+metric.further.wrong._target_=outside.metrics.Wrong",
            "+metric.further.wrong.scale=1", *words,
        )
    )  # fmt: skip
    assert told.status == 1, told.out
    assert message in told.err
    assert len(told.err.splitlines()) <= 2
    assert not list(tmp_path.glob("outputs/*/*"))
