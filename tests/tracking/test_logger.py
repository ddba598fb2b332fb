from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from flair2_exp.signals import status_of
from flair2_exp.tracking.logger import History, RunLogger
from flair2_exp.tracking.run import Run


class Recorder(Run):
    """Remembers what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[tuple[str, int]] = []
        self.flushed = self.finished = 0

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        self.logged += [(name, step) for name in metrics]

    def flush(self) -> None:
        self.flushed += 1

    def finish(self, status: str = "FINISHED") -> None:
        self.finished += 1


class Tiny(LightningModule):
    """Logs in all the ways there are."""

    def __init__(self, interrupt_at: int = -1) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.interrupt_at = interrupt_at
        self.save_hyperparameters()

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        if self.current_epoch == self.interrupt_at:
            raise KeyboardInterrupt
        loss = self.layer(batch).square().mean()
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        self.log("train/norm", 1.0, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: torch.Tensor, index: int) -> None:
        self.log("val/loss", float(self.current_epoch))

    def test_step(self, batch: torch.Tensor, index: int) -> None:
        self.log("test/miou", 0.5)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def trainer(logger: RunLogger, epochs: int) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=logger,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=True,
        default_root_dir=logger.save_dir,
    )


LOADER = DataLoader(torch.ones(4, 1), batch_size=2)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.filterwarnings("ignore")
def test_a_training_is_logged_by_epoch_and_step_and_goes_on_without_doubles(
    tmp_path: Path,
) -> None:
    run = Recorder()
    first = trainer(RunLogger(run, tmp_path / "history.csv", "flair2"), 2)
    first.fit(Tiny(), LOADER, LOADER)
    by_epoch = [(name, step) for name, step in run.logged if name in ("train/loss", "val/loss")]
    assert by_epoch == [("val/loss", 1), ("train/loss", 1), ("val/loss", 2), ("train/loss", 2)]
    assert [step for name, step in run.logged if name == "train/norm_step"] == [0, 1, 2, 3]
    assert [step for name, step in run.logged if name == "train/norm"] == [1, 2]
    assert {name for name, _ in run.logged}.isdisjoint({"epoch", "step", "train/norm_epoch"})
    assert run.flushed
    assert not run.finished

    checkpoint = tmp_path / "last.ckpt"
    first.save_checkpoint(checkpoint)
    second = trainer(RunLogger(run, tmp_path / "history.csv"), 4)
    second.fit(Tiny(), LOADER, LOADER, ckpt_path=checkpoint, weights_only=True)
    second.test(second.lightning_module, LOADER, verbose=False)
    second.validate(second.lightning_module, LOADER, verbose=False)
    assert [row["epoch"] for row in rows(tmp_path)] == ["1", "2", "3", "4"]
    assert [float(row["val/loss"]) for row in rows(tmp_path)] == [0, 1, 2, 3]
    assert list(rows(tmp_path)[0]) == ["epoch", "train/loss", "train/norm", "val/loss"]
    assert not [name for name, _ in run.logged if name.startswith("test/")]  # with the results


@pytest.mark.filterwarnings("ignore")
def test_ctrl_c_during_lightnings_training_is_a_killed_run(tmp_path: Path) -> None:
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        trainer(RunLogger(Run(), tmp_path / "history.csv"), 3).fit(Tiny(interrupt_at=1), LOADER)
    assert status_of(caught.value) == "KILLED"
    assert [row["epoch"] for row in rows(tmp_path)] == ["1"]


def test_metrics_without_an_epoch_stand_at_their_step(tmp_path: Path) -> None:
    run = Recorder()
    logger = RunLogger(run, tmp_path / "history.csv")
    logger.log_metrics({"lr-SGD": 0.1}, 17)
    logger.log_hyperparams({"a": 1})
    assert run.logged == [("lr-SGD", 17)]
    assert not (tmp_path / "history.csv").exists()


def test_a_training_set_back_replaces_the_rows_from_there_on(tmp_path: Path) -> None:
    history = History(tmp_path / "history.csv")
    history.add(0, {"val/loss": 2.0})
    assert not (tmp_path / "history.csv").exists()  # a validation outside training
    for epoch in range(5):
        history.add(epoch, {"val/loss": 1.0})
        history.add(epoch, {"train/loss": 1.0})
    again = History(tmp_path / "history.csv")
    again.add(2, {"val/loss": math.nan, "train/loss": 2.0, "test/miou": 0.5, "lr": 0.1})
    assert rows(tmp_path) == [
        {"epoch": "0", "train/loss": "1.0", "val/loss": "1.0", "lr": ""},
        {"epoch": "1", "train/loss": "1.0", "val/loss": "1.0", "lr": ""},
        {"epoch": "2", "train/loss": "2.0", "val/loss": "nan", "lr": "0.1"},
    ]
    again.add(3, {"train/loss": 3.0})
    assert [row["epoch"] for row in rows(tmp_path)] == ["0", "1", "2", "3"]


def test_numbers_keep_all_their_digits_and_damaged_lines_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    value = 0.1 + 0.2
    History(path).add(0, {"train/loss": value})
    with path.open("a") as file:
        file.write("x,y\n")
    History(path).add(1, {"train/loss": 1.0})
    assert [float(row["train/loss"]) for row in rows(tmp_path)] == [value, 1.0]
