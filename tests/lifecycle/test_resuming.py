"""A run that is interrupted, and the same command once more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from flair2_exp.errors import CheckpointError, ConfigError
from flair2_exp.lifecycle import results
from flair2_exp.lifecycle.assembly import build_data
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import KILLED
from flair2_exp.signals import Terminated
from flair2_exp.training import task
from flair2_exp.training.task import SegmentationTask
from tests.commands import forked
from tests.configs import SMALL_SAMPLE, compose_config, run
from tests.lifecycle.helpers import FULL, Killed, die_at_the_end_of, record_of, scores

PLATEAU = (*FULL, "data.batch_size=4", "scheduler=plateau", "scheduler.patience=0")
BATCHES = ("trainer.limit_train_batches=null", "trainer.max_epochs=2", "model=utt", "metadata=on",
           "data.batch_size=1", "data.workers=1", "aug=flips", "fusion.dropout_rate=0.3",
           "optimizer=adamw")  # fmt: skip
"""Eight batches an epoch, with dropout in both branches."""


@pytest.fixture(scope="module")
def uninterrupted(root: Path) -> dict[str, float]:
    return run(root, root / "uninterrupted", *PLATEAU)


@pytest.fixture(scope="module")
def small_batches(root: Path) -> dict[str, float]:
    return run(root, root / "small_batches", *BATCHES)


def test_two_runs_of_one_command_give_the_same_scores(
    root: Path, tmp_path: Path, uninterrupted: dict[str, float]
) -> None:
    # With another number of reading processes, which must not matter either.
    again = run(root, tmp_path / "again", *PLATEAU, "data.workers=1")
    assert scores(again) == scores(uninterrupted)


@pytest.mark.parametrize(("epoch", "before_writing", "torn"), [
    (0, True, False), (2, False, True),
    pytest.param(2, True, False, marks=pytest.mark.thorough),
    pytest.param(3, False, False, marks=pytest.mark.thorough),
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
    folder = RunFolder(tmp_path / "run")
    with monkeypatch.context() as patch:
        die_at_the_end_of(epoch, patch, before_writing=before_writing)
        with pytest.raises(Killed):
            run(root, folder.path, *PLATEAU)
    if torn:  # as a full disk leaves it
        folder.last.write_bytes(folder.last.read_bytes()[: folder.last.stat().st_size // 2])
    assert scores(run(root, folder.path, *PLATEAU)) == scores(uninterrupted)
    history = folder.history.read_text().splitlines()
    assert [line.split(",")[0] for line in history[1:]] == ["1", "2", "3", "4"]


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


def count_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batches of all training steps from now on, as they come."""
    steps: list[int] = []
    step = SegmentationTask.training_step

    def counted(self: SegmentationTask, items: Any, index: int) -> Any:
        steps.append(index)
        return step(self, items, index)

    monkeypatch.setattr(SegmentationTask, "training_step", counted)
    return steps


@pytest.mark.parametrize(("number", "kind", "epoch", "batch"), [
    (signal.SIGTERM, Terminated, 0, 2),
    pytest.param(signal.SIGTERM, Terminated, 0, -1, marks=pytest.mark.thorough),
    pytest.param(signal.SIGINT, KeyboardInterrupt, 1, 1, marks=pytest.mark.thorough),
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
    folder = RunFolder(tmp_path / "run")
    with monkeypatch.context() as patch:
        signal_at(patch, number, epoch, batch)
        with pytest.raises(kind):
            run(root, folder.path, *BATCHES)
    assert record_of(folder.path).status == KILLED
    kept = torch.load(folder.last, weights_only=True)
    # After an epoch's last batch its validation is waited for, and the next epoch begins.
    assert kept["global_step"] == epoch * count + batch + 1
    steps = count_steps(monkeypatch)
    assert scores(run(root, folder.path, *BATCHES)) == scores(small_batches)
    assert len(steps) == 2 * count - kept["global_step"]


@pytest.mark.thorough
def test_an_epoch_without_its_last_partial_batch_resumes_within_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen patches in batches of six: two steps an epoch, and one of the second is kept."""
    whole = (*BATCHES, "data.batch_size=6", "data.drop_last=true")
    steps = count_steps(monkeypatch)
    expected = scores(run(root, tmp_path / "uninterrupted", *whole))
    assert steps == [0, 1, 0, 1]
    folder = RunFolder(tmp_path / "run")
    with monkeypatch.context() as patch:
        signal_at(patch, signal.SIGTERM, 1, 0)
        with pytest.raises(Terminated):
            run(root, folder.path, *whole)
    assert torch.load(folder.last, weights_only=True)["global_step"] == 3
    steps.clear()
    assert scores(run(root, folder.path, *whole)) == expected
    assert steps == [1]


def test_a_checkpoint_is_due_after_some_minutes_within_an_epoch(
    root: Path, tmp_path: Path, small_batches: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    often = (*BATCHES, "callbacks.resume.save_minutes=0.00001")
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
@pytest.mark.parametrize(("number", "status"), [
    (signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.thorough),
])  # fmt: skip
def test_a_signal_to_a_whole_command_keeps_what_it_has_learned(
    number: int, status: int, root: Path, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run")
    overrides = (
        f"paths.root={root}", "preset=debug", "trainer=cpu", "tracking=off", *SMALL_SAMPLE,
        *BATCHES, "trainer.max_epochs=1000", f"hydra.run.dir={folder}",
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
    assert errors.splitlines()[-1].endswith(f"; this resumes: flair2-exp resume={folder}")
    assert record_of(folder.path).status == KILLED
    assert folder.last.exists()


def test_a_second_signal_ends_the_process_at_once(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Lightning looks after every card's random numbers, also in a run on the processor, and a fork
    # of a process that has used a card cannot.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    signal_at(monkeypatch, signal.SIGTERM, 0, 1, times=2)
    assert forked(lambda: run(root, tmp_path / "run", *BATCHES, "data.workers=0")) == 143


def test_a_run_killed_while_testing_is_tested_without_being_trained_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(*_: object) -> None:
        raise Killed

    folder = RunFolder(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(results, "save_results", dying)
        with pytest.raises(Killed):
            run(root, folder.path)
    steps = count_steps(monkeypatch)
    assert "test/miou" in run(root, folder.path)
    assert steps == []


def test_a_finished_run_is_not_run_again_and_another_is_not_mixed_in(
    root: Path, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run")
    first = run(root, folder.path)
    written = folder.metrics.stat().st_mtime_ns
    assert run(root, folder.path, "data.workers=1") == first
    assert folder.metrics.stat().st_mtime_ns == written
    with pytest.raises(ConfigError, match=r"another experiment: optimizer\.lr: 0\.003 -> 0\.5"):
        run(root, folder.path, "optimizer.lr=0.5")
    assert run(root, folder.path) == first
    # A torn record does not say whose the checkpoints are.
    folder.record.write_text("{")
    with pytest.raises(ConfigError, match=r"no readable run\.json"):
        run(root, folder.path)
    assert folder.best.exists()


def test_a_run_that_was_not_tested_can_be_tested_later_if_its_best_checkpoint_is_there(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "run")
    assert "test/miou" not in run(root, folder.path, "test=false")
    content = folder.best.read_bytes()
    for torn in (b"", content[: len(content) // 2]):
        folder.best.unlink()
        if torn:
            folder.best.write_bytes(torn)
        with pytest.raises(CheckpointError, match=r"best\.ckpt") as refusal:
            run(root, folder.path)
        assert str(refusal.value).splitlines()[1].endswith(f"remove {folder} to train anew.")
        folder.best.write_bytes(content)
    steps = count_steps(monkeypatch)
    finished = run(root, folder.path)
    assert "test/miou" in finished
    assert steps == []
    folder.best.unlink()  # to save space: nothing is left to test
    assert run(root, folder.path) == finished


def test_a_run_that_resumes_needs_no_pretrained_weights_any_more(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[bool] = []
    build = task.build_network

    def noted(spec: Any, pretrained: bool = True) -> Any:
        wanted.append(pretrained)
        return build(spec, pretrained=False)

    monkeypatch.setattr(task, "build_network", noted)
    overrides = (*FULL, "trainer.max_epochs=2")
    with monkeypatch.context() as patch:
        die_at_the_end_of(0, patch)
        with pytest.raises(Killed):
            run(root, tmp_path / "run", *overrides)
    run(root, tmp_path / "run", *overrides)
    run(root, tmp_path / "run", *overrides)  # finished
    assert wanted == [True, False, False]
