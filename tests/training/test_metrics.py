"""Further metrics, callbacks and loggers: by name, in a run, and where it resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer

from flair2_exp.config.training import BestConfig, FurtherMetrics, MetricConfig
from flair2_exp.errors import ConfigError
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.training.metrics import build_metrics, require_metrics
from tests.configs import compose_config, run
from tests.lifecycle.helpers import Killed, die_at_the_end_of, scores
from tests.training.helpers import build_task, loader, trainer

F1 = "torchmetrics.classification.MulticlassF1Score"


def _metric(target: str, other_pixels: Any = "drop", **options: Any) -> MetricConfig:
    further = FurtherMetrics(parts={"mine": {"_target_": target, **options}})
    return MetricConfig(other_pixels=other_pixels, further=further)


class Predictions(Callback):
    """Keeps what validation predicts and the truth, as the network itself gives them."""

    def __init__(self) -> None:
        self.pairs: list[tuple[torch.Tensor, torch.Tensor]] = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self.pairs.append((pl_module(batch)["aerial"].argmax(1), batch["label"]))


@pytest.mark.parametrize("other_pixels", ["drop", "keep"])
def test_a_metric_is_that_of_the_pixels_that_count(other_pixels: str) -> None:
    task = build_task("model=unet", "data=aerial_only", f"metric.other_pixels={other_pixels}",
                      f"+metric.further.mine._target_={F1}",
                      "+metric.further.mine.average=micro")  # fmt: skip
    kept = Predictions()
    runner = trainer(kept)
    for _ in range(2):  # the second validation knows nothing of the first
        kept.pairs.clear()
        runner.validate(task, loader(), verbose=False)
    prediction, truth = (torch.cat(each).flatten() for each in zip(*kept.pairs, strict=True))
    counted = truth != 12 if other_pixels == "drop" else truth >= 0
    # Micro F1 of one class per pixel is the share of pixels that are right.
    expected = float((prediction == truth)[counted].float().mean())
    assert float(runner.callback_metrics["val/mine"]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("metric", "best", "message"),
    [
        (_metric("torchmetrics.F1"), BestConfig(), r"=torchmetrics\.F1: torchmetrics has no F1"),
        (_metric("os.system"), BestConfig(), r"mine\._target_=os\.system: not such a class"),
        (_metric(F1, avrage="micro"), BestConfig(), r"mine: .*avrage: did you mean average"),
        (_metric(F1, average="most"), BestConfig(), r"metric\.further\.mine.*average"),
        (_metric(F1, average="none"), BestConfig(), r"gives shape \(13,\)\.\nExpected one number"),
        (
            _metric("torchmetrics.regression.CosineSimilarity"),
            BestConfig(),
            r"mine: CosineSimilarity.*\nExpected a metric of predicted and true class indices",
        ),
        (
            _metric(F1),
            BestConfig(monitor="val/mine"),
            r"callbacks\.best\.mode=min would keep the worst.*use callbacks\.best\.mode=max",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(
    metric: MetricConfig, best: BestConfig, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        require_metrics(metric, best, 13)


@pytest.mark.parametrize(("has_other", "expected"), [(True, 1.0), (False, 0.5)])
def test_the_last_class_counts_where_it_is_one_like_the_others(
    has_other: bool, expected: float
) -> None:
    metric = build_metrics(_metric(F1, average="micro"), 3, has_other=has_other)["mine"]
    metric.update(torch.tensor([0, 1, 0, 1]), torch.tensor([0, 1, 2, 2]))
    assert float(metric.compute()) == expected


@pytest.mark.parametrize("target", [
    F1, "torchmetrics.F1Score", "torchmetrics.CohenKappa",
    "torchmetrics.classification.MulticlassMatthewsCorrCoef",
])  # fmt: skip
@pytest.mark.parametrize("other_pixels", ["drop", "keep"])
def test_classes_and_task_are_given(target: str, other_pixels: str) -> None:
    require_metrics(_metric(target, other_pixels), BestConfig(), 13)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("+metric.further.miou._target_=a.B",), r"further\.miou: val/miou .*measured already"),
        (("objective=val/mine",), r"objective=val/mine is never logged; did you mean val/miou"),
        (("callbacks.best.monitor=val/mine",), r"monitor=val/mine is never logged"),
        (("+metric.further.mine.average=micro",), r"further\.mine: no such option;?\nA part of"),
        (("+callbacks.mine._target_=3",), r"callbacks\.mine: no such option"),
    ],
)
def test_what_nobody_measures_is_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose_config(*words)


class Counter(Callback):
    """Counts the batches of a training, whatever processes it takes; logs the count."""

    def __init__(self, start: int = 0) -> None:
        self.count = start

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.count += 1
        pl_module.log("train/count", float(self.count), on_step=False, on_epoch=True)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.count = state_dict["count"]


class Unkept(Callback):
    """Has a state that no checkpoint can hold."""

    def state_dict(self) -> dict[str, Any]:
        return {"path": Path("a")}


OWN = (
    "model=unet", "data=aerial_only", "trainer.max_epochs=3", f"+metric.further.f1._target_={F1}",
    "callbacks.best.monitor=val/f1", "callbacks.best.mode=max", "objective=val/f1",
    f"+callbacks.counter._target_={__name__}.Counter", "+callbacks.counter.start=10",
    "+callbacks.rates._target_=lightning.pytorch.callbacks.LearningRateMonitor",
    "+tracking.loggers.table._target_=lightning.pytorch.loggers.CSVLogger",
    "+tracking.loggers.table.name=csv", "trainer.log_every_n_steps=1",
)  # fmt: skip


@pytest.mark.slow
def test_a_killed_run_with_parts_of_ones_own_resumes_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path, tmp_path / "whole", *OWN)
    assert {"val/f1", "test/f1"} <= whole.keys()
    assert whole["train/count"] == 13.0
    with monkeypatch.context() as patch:
        die_at_the_end_of(1, patch)
        with pytest.raises(Killed):
            run(tmp_path, tmp_path / "killed", *OWN)
    assert scores(run(tmp_path, tmp_path / "killed", *OWN)) == scores(whole)
    tables = list((RunFolder(tmp_path / "whole").loggers / "table" / "csv").glob("*/metrics.csv"))
    assert len(tables) == 1
    assert "val/f1" in tables[0].read_text().splitlines()[0]
    assert "optimizer" in tables[0].with_name("hparams.yaml").read_text()


def test_a_callback_whose_state_cannot_be_kept_is_named(tmp_path: Path) -> None:
    unkept = f"+callbacks.unkept._target_={__name__}.Unkept"
    with pytest.raises(ConfigError, match=r"Unkept.* cannot be kept in a checkpoint"):
        run(tmp_path, tmp_path / "run", "model=unet", "data=aerial_only", unkept)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "+callbacks.mine._target_=torch.optim.SGD",
            r"callbacks\.mine\._target_=\S+: not such a c",
        ),
        (
            "+callbacks.rates={_target_:lightning.pytorch.callbacks.LearningRateMonitor,intervall:1}",
            r"callbacks\.rates\.intervall: .*no such option",
        ),
        (
            "+tracking.loggers.table={_target_:lightning.pytorch.loggers.CSVLogger,nam:1}",
            r"tracking\.loggers\.table\.nam: CSVLogger .*did you mean name",
        ),
        (
            "+tracking.loggers.wandb={_target_:lightning.pytorch.loggers.CSVLogger,"
            "api_key:0123456789abcdef}",
            r"tracking\.loggers\.wandb holds credentials",
        ),
        ("aug._target_=os.system", r"aug\._target_=os\.system: not such a class"),
    ],
)
def test_parts_that_do_not_exist_or_lack_an_option_are_refused_before_a_run(
    words: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, tmp_path / "run", "model=unet", "data=aerial_only", words)
    assert not (tmp_path / "run").exists()
