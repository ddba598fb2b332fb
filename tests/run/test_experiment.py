"""One experiment, end to end, on the smallest sample."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flair2_exp.errors import CheckpointError, ConfigError, DataError, FlairError, ModelError
from flair2_exp.locking import locked
from flair2_exp.run import experiment, results
from flair2_exp.run import record as run_state
from flair2_exp.run.assembly import build_data
from flair2_exp.run.record import RunState
from flair2_exp.signals import Terminated
from flair2_exp.training import task
from flair2_exp.training.callbacks import ResumePoint
from flair2_exp.training.task import SegmentationTask
from tests.configs import SMALL_SAMPLE, compose_config, run

TIMES = ("seconds",)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this module's experiments find the sample and write."""
    return tmp_path_factory.mktemp("experiments")


def scores(metrics: dict[str, float]) -> dict[str, float]:
    """What two equal runs must agree on: all but times."""
    return {name: value for name, value in metrics.items() if not any(t in name for t in TIMES)}


SATELLITE = ["raw", "cloudfree", "monthly", "monthly_cloudfree"]
CASES = [
    ["model=unet", "data=aerial_only"],
    ["model=unet", "data=aerial_s2", "metadata=on"],
    *(["model=utae", f"s2_preproc={option}"] for option in SATELLITE),
    *(["model=utt", f"s2_preproc={option}"] for option in SATELLITE),
    ["model=utt", "compat=reference", "split=official", "metadata=on", "s2_preproc=raw"],
]


@pytest.mark.parametrize("overrides", CASES, ids=" ".join)
def test_each_model_and_preprocessing_trains_and_is_scored(
    overrides: list[str], root: Path, tmp_path: Path
) -> None:
    metrics = run(root, tmp_path / "run", *overrides)
    assert np.isfinite([metrics["train/loss"], metrics["val/loss"], metrics["test/loss"]]).all()
    assert 0.0 <= metrics["test/miou"] <= 1.0
    with np.load(tmp_path / "run" / results.CONFUSION, allow_pickle=False) as kept:
        assert kept["confusion"].shape == (len(kept["patch_ids"]), 13, 13)
        assert metrics["test/patches"] == len(kept["patch_ids"])
        # With the published metric every pixel is counted; without "other", no more than all.
        pixels = kept["confusion"].sum(axis=(1, 2))
        assert (pixels <= 64 * 64).all()
        if "compat=reference" in overrides:
            assert (pixels == 64 * 64).all()
    for name in ("config.yaml", "history.csv", "confusion.png", "panel.png", experiment.BEST):
        assert (tmp_path / "run" / name).stat().st_size > 0


FULL = ("trainer.limit_train_batches=null", "trainer.limit_val_batches=null",
        "trainer.limit_test_batches=null", "trainer.max_epochs=4")  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(root: Path) -> dict[str, float]:
    return run(root, root / "uninterrupted", *FULL, "scheduler=plateau", "scheduler.patience=0")


def test_two_runs_of_one_command_give_the_same_scores(
    root: Path, tmp_path: Path, uninterrupted: dict[str, float]
) -> None:
    # With another number of reading processes, which must not matter either.
    again = run(root, tmp_path / "again", *FULL, "scheduler=plateau", "scheduler.patience=0",
                "data.workers=1")  # fmt: skip
    assert scores(again) == scores(uninterrupted)


class Killed(BaseException):
    """Stands for a process that ends between two instructions."""


def interrupt(monkeypatch: pytest.MonkeyPatch, epoch: int, *, before_writing: bool) -> None:
    """Let training die at an epoch's end, before or after its checkpoint is written."""
    write = ResumePoint.on_train_epoch_end

    def dying(self: ResumePoint, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == epoch and before_writing:
            raise Killed
        write(self, trainer, module)
        if trainer.current_epoch == epoch:
            raise Killed

    monkeypatch.setattr(ResumePoint, "on_train_epoch_end", dying)


@pytest.mark.parametrize(("epoch", "before_writing", "torn"), [
    (0, True, False), (1, False, False), (2, True, False), (2, False, True), (3, False, False),
])  # fmt: skip
def test_an_interrupted_run_ends_with_the_scores_of_an_uninterrupted_one(
    epoch: int,
    before_writing: bool,
    torn: bool,
    root: Path,
    tmp_path: Path,
    uninterrupted: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, overrides = tmp_path / "run", (*FULL, "scheduler=plateau", "scheduler.patience=0")
    with monkeypatch.context() as patch:
        interrupt(patch, epoch, before_writing=before_writing)
        with pytest.raises(Killed):
            run(root, folder, *overrides)
    if torn:  # as a full disk leaves it
        last = folder / experiment.LAST
        last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    assert scores(run(root, folder, *overrides)) == scores(uninterrupted)
    history = (folder / "history.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in history[1:]] == ["0", "1", "2", "3"]


@pytest.fixture(scope="module")
def small_batches(root: Path) -> dict[str, float]:
    """Of a run of eight batches an epoch, with dropout in both branches."""
    return run(root, root / "small_batches", *BATCHES)


BATCHES = ("trainer.limit_train_batches=null", "trainer.max_epochs=2", "model=utt", "metadata=on",
           "data.batch_size=1", "data.workers=1", "aug=flips", "fusion.dropout_rate=0.3",
           "optimizer=adamw")  # fmt: skip


def signal_at(
    monkeypatch: pytest.MonkeyPatch, number: int, epoch: int, batch: int, *, times: int = 1
) -> None:
    """Let a signal reach this process in the middle of a training step."""
    step = SegmentationTask.training_step

    def signalled(self: SegmentationTask, items: Any, index: int) -> Any:
        if (self.current_epoch, index) == (epoch, batch):
            for _ in range(times):
                os.kill(os.getpid(), number)
        return step(self, items, index)

    monkeypatch.setattr(SegmentationTask, "training_step", signalled)


@pytest.mark.parametrize(("number", "kind", "epoch", "batch"), [
    (signal.SIGTERM, Terminated, 0, 2), (signal.SIGTERM, Terminated, 0, -1),
    (signal.SIGINT, KeyboardInterrupt, 1, 1),
])  # fmt: skip
def test_a_signal_keeps_what_the_epoch_has_learned(
    number: int,
    kind: type[BaseException],
    epoch: int,
    batch: int,
    root: Path,
    tmp_path: Path,
    small_batches: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = compose_config(f"paths.root={root}", "preset=debug", *SMALL_SAMPLE, *BATCHES)
    count = build_data(config).counts["train"]
    batch %= count
    with monkeypatch.context() as patch:
        signal_at(patch, number, epoch, batch)
        with pytest.raises(kind):
            run(root, tmp_path / "run", *BATCHES)
    state = RunState.read(tmp_path / "run")
    assert state is not None
    assert state.status == run_state.KILLED
    kept = torch.load(tmp_path / "run" / experiment.LAST, weights_only=True)
    # After an epoch's last batch its validation is waited for, and the next epoch begins.
    assert kept["global_step"] == epoch * count + batch + 1
    steps = count_steps(monkeypatch)
    assert scores(run(root, tmp_path / "run", *BATCHES)) == scores(small_batches)
    assert len(steps) == 2 * count - kept["global_step"]


def count_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    steps: list[int] = []
    step = SegmentationTask.training_step

    def counted(self: SegmentationTask, items: Any, index: int) -> Any:
        steps.append(index)
        return step(self, items, index)

    monkeypatch.setattr(SegmentationTask, "training_step", counted)
    return steps


def test_a_checkpoint_is_due_after_some_minutes_within_an_epoch(
    root: Path, tmp_path: Path, small_batches: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    often = (*BATCHES, "callbacks.save_minutes=0.00001")
    with monkeypatch.context() as patch:
        step = SegmentationTask.training_step

        def dying(self: SegmentationTask, items: Any, index: int) -> Any:
            if (self.current_epoch, index) == (1, 2):
                raise Killed
            return step(self, items, index)

        patch.setattr(SegmentationTask, "training_step", dying)
        with pytest.raises(Killed):
            run(root, tmp_path / "run", *often)
    steps = count_steps(monkeypatch)
    assert scores(run(root, tmp_path / "run", *often)) == scores(small_batches)
    assert steps[0] == 2


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_a_whole_command_keeps_what_it_has_learned(
    number: int, status: int, root: Path, tmp_path: Path
) -> None:
    overrides = (
        f"paths.root={root}", "preset=debug", "trainer=cpu", "tracking=off", *SMALL_SAMPLE,
        *BATCHES, "trainer.max_epochs=1000", f"hydra.run.dir={tmp_path}/run",
    )  # fmt: skip
    command = subprocess.Popen(
        [sys.executable, "-m", "flair2_exp", *overrides], start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert command.stdout is not None
    while "epoch 2/" not in command.stdout.readline():
        assert command.poll() is None
    os.killpg(command.pid, number)  # its workers, too, as on a terminal or a cluster
    _, errors = command.communicate(timeout=120)
    assert command.returncode == status, errors
    assert "Traceback" not in errors
    state = RunState.read(tmp_path / "run")
    assert state is not None
    assert state.status == run_state.KILLED
    assert (tmp_path / "run" / experiment.LAST).exists()


def test_a_second_signal_ends_the_process_at_once(root: Path, tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        try:
            with pytest.MonkeyPatch.context() as patch:
                signal_at(patch, signal.SIGTERM, 0, 1, times=2)
                run(root, tmp_path / "run", *BATCHES, "data.workers=0")
        finally:
            os._exit(1)  # not reached
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 143


def test_a_run_killed_while_testing_is_tested_without_being_trained_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(results, "save_results", dying)
        with pytest.raises(Killed):
            run(root, tmp_path / "run")
    trained = (tmp_path / "run" / experiment.BEST).stat().st_mtime_ns
    run(root, tmp_path / "run")
    assert (tmp_path / "run" / experiment.BEST).stat().st_mtime_ns == trained


def test_a_finished_run_is_not_run_again_and_another_is_not_mixed_in(
    root: Path, tmp_path: Path
) -> None:
    first = run(root, tmp_path / "run")
    written = (tmp_path / "run" / results.METRICS).stat().st_mtime_ns
    assert run(root, tmp_path / "run", "data.workers=1") == first
    assert (tmp_path / "run" / results.METRICS).stat().st_mtime_ns == written
    with pytest.raises(ConfigError, match=r"another experiment: optimizer\.lr: 0\.003 -> 0\.5"):
        run(root, tmp_path / "run", "optimizer.lr=0.5")
    assert run(root, tmp_path / "run") == first


def test_a_run_that_was_not_tested_can_be_tested_later(root: Path, tmp_path: Path) -> None:
    assert "test/miou" not in run(root, tmp_path / "run", "test=false")
    trained = (tmp_path / "run" / experiment.BEST).stat().st_mtime_ns
    assert "test/miou" in run(root, tmp_path / "run")
    assert (tmp_path / "run" / experiment.BEST).stat().st_mtime_ns == trained


@pytest.mark.parametrize("torn", [False, True])
def test_a_trained_run_without_its_best_checkpoint_is_refused_with_the_way_out(
    root: Path, tmp_path: Path, torn: bool
) -> None:
    run(root, tmp_path / "run", "test=false")
    best = tmp_path / "run" / experiment.BEST
    content = best.read_bytes()
    best.unlink()
    if torn:
        best.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"best\.ckpt") as refused:
        run(root, tmp_path / "run")
    assert str(refused.value).splitlines()[1].endswith(f"remove {tmp_path / 'run'} to train anew.")
    best.write_bytes(content)
    finished = run(root, tmp_path / "run")
    best.unlink()  # to save space: nothing is left to test
    assert run(root, tmp_path / "run") == finished


def test_a_folder_with_somebodys_files_is_left_alone(root: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError):
        run(root, tmp_path, "dataset.sample.patch_size=72")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_two_processes_do_not_work_in_one_folder(root: Path, tmp_path: Path) -> None:
    with locked(tmp_path / "run"), pytest.raises(ConfigError, match="is in use by process"):
        run(root, tmp_path / "run")
    assert (tmp_path / "run").exists()
    assert "test/miou" in run(root, tmp_path / "run")


def test_checkpoints_of_nobody_knows_what_are_not_gone_on_from(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "run")
    (tmp_path / "run" / run_state.FILE).write_text("{")
    with pytest.raises(ConfigError, match=r"no readable run\.json"):
        run(root, tmp_path / "run")
    assert (tmp_path / "run" / experiment.BEST).exists()


def test_a_run_that_goes_on_needs_no_pretrained_weights_any_more(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    build = task.build_model
    monkeypatch.setattr(
        task, "build_model", lambda spec, *, pretrained: asked.append(pretrained) or build(spec)
    )
    overrides = (*FULL, "trainer.max_epochs=2")
    with monkeypatch.context() as patch:
        interrupt(patch, 0, before_writing=False)
        with pytest.raises(Killed):
            run(root, tmp_path / "run", *overrides)
    run(root, tmp_path / "run", *overrides)
    run(root, tmp_path / "run", *overrides)  # finished
    assert asked == [True, False, False]


def test_a_checkpoint_is_tested_as_it_is_and_trained_on(root: Path, tmp_path: Path) -> None:
    first = run(root, tmp_path / "first")
    best = f"checkpoint={tmp_path / 'first' / experiment.BEST}"
    tested = run(root, tmp_path / "tested", best, "train=false")
    assert tested["test/miou"] == first["test/miou"]
    assert tested["test/loss"] == first["test/loss"]
    longer = run(root, tmp_path / "longer", best, "trainer.max_epochs=2")
    assert longer["train/epochs"] == 2.0


def test_checkpoints_hold_nothing_but_tensors_and_plain_values(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "run", "model=unet")
    for name in (experiment.BEST, experiment.LAST):
        content = torch.load(tmp_path / "run" / name, weights_only=True)
        assert content["hyper_parameters"]["model"]["name"] == "unet"


def _folder_with(path: Path, *names: str) -> Path:
    for name in names:
        (path / name).mkdir(parents=True)
    return path


def test_what_cannot_run_is_refused_in_two_lines_and_leaves_nothing(
    root: Path, tmp_path: Path
) -> None:
    run(root, tmp_path / "unet", "model=unet")
    foreign = tmp_path / "foreign.ckpt"
    torch.save({"weights": torch.ones(2)}, foreign)
    nothing = _folder_with(tmp_path, "empty") / "empty"
    coco = _folder_with(tmp_path / "coco", "train2017", "annotations")
    split = tmp_path / "split.yaml"
    split.write_text("train: [D006_2020]\nvalidation: []\ntest: []\n")
    other = "dataset=flair2"
    cases: list[tuple[list[str], type[FlairError], str]] = [
        ([other, f"dataset.root={tmp_path}/none"], DataError, "none"),
        ([other, f"dataset.root={nothing}"], DataError, "empty"),
        ([other, f"dataset.root={coco}"], DataError, "coco"),
        (["split=file", f"split.file={split}"], DataError, "D006_2020|validation"),
        (["dataset.sample.patch_size=72"], ConfigError, "multiple of 32"),
        (["s2_preproc.size=72"], ConfigError, "use dataset.sample.super_patch=72"),
        (["trainer=gpu"], FlairError, "trainer=cpu"),
        (["trainer.precision=16-mixed"], FlairError, "needs a GPU"),
        (["trainer.strategy=dpd"], FlairError, "no such strategy; did you mean ddp"),
        (["model.encoder_weights=imagenet", "model.encoder=resnet18"], ModelError, "weights"),
        (["model.encoder=resnet35"], ModelError, "resnet35"),
        ([f"checkpoint={tmp_path}/none.ckpt"], CheckpointError, "none.ckpt"),
        ([f"checkpoint={foreign}"], CheckpointError, "no checkpoint of this package"),
        ([f"checkpoint={tmp_path}/unet/{experiment.BEST}"], CheckpointError, "of another model"),
        ([f"model.weights={foreign}"], CheckpointError, "foreign"),
        (["optimizer._target_=torch.optim.Adamm"], ConfigError, "Adamm"),
    ]  # fmt: skip
    for overrides, kind, message in cases:
        folder = root / "refused" / "run"
        with pytest.raises(kind, match=message) as caught:
            run(root, folder, *overrides)
        assert len(str(caught.value).splitlines()) <= 3, str(caught.value)
        assert not folder.parent.exists(), overrides


def test_a_refused_run_takes_nothing_of_the_users_with_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = ("dataset=flair2", f"dataset.root={tmp_path}/none")
    mine = _folder_with(tmp_path, "mine", "empty") / "mine"
    (mine / "training.log").write_text("mine")
    with pytest.raises(DataError):
        run(root, mine, *nowhere)
    assert [path.name for path in mine.iterdir()] == ["training.log"]
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(DataError):
        run(root, Path("run"), *nowhere)
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.fixture(scope="module")
def tracked(root: Path) -> tuple[Path, Any]:
    """A finished run in a local MLflow store, and the store's client."""
    config = compose_config(
        f"paths.root={root}", "preset=debug", "trainer=cpu", *SMALL_SAMPLE, "model=utt",
    )  # fmt: skip
    experiment.run(config, root / "tracked", ["preset=debug"])
    from mlflow.tracking import MlflowClient

    return root / "tracked", MlflowClient(f"sqlite:///{root}/mlruns/mlflow.db")


def test_mlflow_keeps_all_that_a_run_was_and_found(tracked: tuple[Path, Any]) -> None:
    folder, client = tracked
    state = RunState.read(folder)
    assert state is not None
    run = client.get_run(state.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["s2_preproc.monthly"] == "true"
    assert run.data.params["optimizer.lr"] == "0.003"
    metrics = json.loads((folder / results.METRICS).read_text())
    assert run.data.metrics["test/miou"] == metrics["test/miou"]
    assert {"train/loss", "val/miou", "inference/seconds_per_patch"} <= run.data.metrics.keys()
    tags = run.data.tags
    assert tags["flair2.identity"] == state.identity
    assert tags["flair2.dataset_fingerprint"] == state.deciding["fingerprint"]
    kept = {
        item.path
        for part in ("config", "provenance", "results", "")
        for item in client.list_artifacts(state.run_id, part)
    }
    assert {
        "config/config.yaml", "config/overrides.yaml", "provenance/git.json",
        "provenance/packages.txt", "provenance/machine.json", "provenance/dataset.json",
        "results/metrics.json", "results/confusion_per_patch.npz", "results/history.csv",
        "confusion.png", "panel.png",
    } <= kept  # fmt: skip


def test_a_patch_damaged_during_the_run_fails_it_by_name(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "sample", "model=unet")  # writes the sample, should this test run alone
    whole = next((root / "data").glob("sample_64px_*"))
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    victim = sorted(copy.glob("flair_aerial_train/*/*/img/*.tif"))[1]
    size = victim.stat().st_size
    victim.write_bytes(victim.read_bytes()[:200] + os.urandom(size - 200))
    overrides = ["dataset=flair2", f"dataset.root={copy}", "model=unet", *FULL]
    with pytest.raises(DataError, match=victim.name):
        run(root, tmp_path / "run", *overrides)
    state = RunState.read(tmp_path / "run")
    assert state is None or state.status == run_state.FAILED
    skipped = run(root, tmp_path / "skipping", *overrides, "dataset.on_damaged=skip")
    assert np.isfinite(skipped["test/loss"])
