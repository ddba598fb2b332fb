"""The published FLAIR #2 results, and when they may stand beside ours.

Source: the leaderboard and the earlier table of means of the FLAIR #2 baseline (flair2 §2). The
leaderboard figures replaced the means and are each higher; they read as best runs, the means as
what a reproduction should reach. Neither is dated there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from flair2_exp.nomenclature import AERIAL_BANDS
from flair2_exp.report.runs import ScoredRun
from flair2_exp.score import Convention
from flair2_exp.tracking.tags import Tag

DATASET: Final[str] = "flair2"
TEST_PATCHES: Final[int] = 16_050
BATCH: Final[int] = 10
"""Patches per step of the published training, over all devices."""
SPLIT: Final[str] = "test, official"


@dataclass(frozen=True)
class PublishedFigure:
    """A figure, and what it is a figure of."""

    value: float
    kind: Literal["best", "mean"]
    """Of several runs; that the leaderboard's figures are best runs is inferred, not stated."""
    source: str
    deviation: float | None = None
    """Standard deviation over runs, of a mean."""
    date: str | None = None
    """None: its source does not date it."""
    convention: Convention = Convention.CHALLENGE
    split: str = SPLIT


@dataclass(frozen=True)
class Published:
    """One published row: its figures, a single one first where there is one."""

    name: str
    """The experiment of `conf/experiment/leaderboard/` that is trained as it."""
    figures: tuple[PublishedFigure, ...]

    @property
    def best(self) -> float | None:
        """The single figure, of a best run; None where there is none."""
        return next((each.value for each in self.figures if each.kind == "best"), None)

    @property
    def mean(self) -> float:
        """The mean over runs, which every row has."""
        return self._mean.value

    @property
    def deviation(self) -> float | None:
        """The standard deviation over those runs."""
        return self._mean.deviation

    @property
    def convention(self) -> Convention:
        """What its figures mean by mIoU."""
        return self._mean.convention

    @property
    def _mean(self) -> PublishedFigure:
        return next(each for each in self.figures if each.kind == "mean")


_LEADERBOARD: Final = "FLAIR #2 baseline, leaderboard"
PODIUM: Final[tuple[PublishedFigure, ...]] = tuple(
    PublishedFigure(value, "best", "FLAIR #2 challenge, final ranking")
    for value in (0.6413, 0.6355, 0.6351)
)
"""The challenge's first three, for scale: stronger encoders, AdamW, ensembles."""


def _row(name: str, best: float | None, mean: float, deviation: float) -> Published:
    means = PublishedFigure(mean, "mean", "FLAIR #2 baseline, earlier table of means", deviation)
    single = [] if best is None else [PublishedFigure(best, "best", _LEADERBOARD)]
    return Published(name, (*single, means))


_UNET: Final = {"model.name": "unet"}
_UTT: Final = {
    "model.name": "utt", "fusion.dropout_rate": "0", "s2_preproc.size": "40",
    "loss.satellite": "1", "loss.satellite_class_weights": "reference",
    "aug.drop_dates": "0",
}  # fmt: skip
_MONTHS: Final = {"s2_preproc.cloud_filter": "true", "s2_preproc.monthly": "true"}
_RAW: Final = {"s2_preproc.cloud_filter": "false", "s2_preproc.monthly": "false"}
_PLAIN: Final = {"aug.geometry": "none", "metadata.enabled": "false"}
_FLIPS: Final = {
    "aug.geometry": "flips", "aug.probability": "0.5", "metadata.enabled": "false"
}  # fmt: skip
_BOTH: Final = {**_FLIPS, "metadata.enabled": "true"}

_TRAINING: Final[Mapping[str, str]] = {
    "train": "true",
    "checkpoint": "null",
    "data.classes": "13",
    "data.bands": json.dumps(AERIAL_BANDS),
    "data.val_batch_size": "10",
    "data.test_batch_size": "1",
    "data.drop_last": "true",
    "model.encoder": "resnet34",
    "model.encoder_weights": "imagenet",
    "model.weights": "null",
    "loss._target_": "flair2_exp.training.losses.CrossEntropy",
    "loss.aerial": "1",
    "loss.class_weights.other": "0",
    "loss.label_smoothing": "0",
    "optimizer._target_": "torch.optim.SGD",
    "optimizer.lr": "0.001",
    "optimizer.weight_decay": "0",
    "optimizer.options": "{}",
    "optimizer.encoder_lr_factor": "1",
    "optimizer.layer_decay": "1",
    "model.freeze_encoder": "0",
    "scheduler._target_": "flair2_exp.training.schedules.Constant",
    "scheduler.warmup_epochs": "0",
    "trainer.max_epochs": "100",
    "trainer.gradient_clip_val": "0",
    **dict.fromkeys((f"trainer.limit_{part}_batches" for part in ("train", "val", "test")), "null"),
    "callbacks.best.monitor": "val/loss",
    "callbacks.early_stopping.patience": "30",
    "callbacks.average.kind": "none",
    "aug._target_": "flair2_exp.data.augment.Augmentation",
    **dict.fromkeys(
        (f"aug.{each}" for each in ("brightness", "contrast", "gamma", "noise", "zoom")), "0"
    ),
}
"""How all rows were trained (flair2 §2); a number is equal however it is written."""

_TABLE: Final[tuple[tuple[dict[str, str], Published], ...]] = (
    (_UNET | _PLAIN, _row("unet", 0.5470, 0.5467, 0.0009)),
    (_UNET | _BOTH, _row("unet_metadata_aug", 0.5593, 0.5517, 0.0013)),
    (_UTT | _RAW | _PLAIN, _row("utt", 0.5594, 0.5490, 0.0072)),
    (
        _UTT | _MONTHS | _PLAIN,
        _row("utt_cloudfree_monthly", None, 0.5580, 0.0096),
    ),
    (
        _UTT | _MONTHS | _FLIPS,
        _row("utt_cloudfree_monthly_aug", 0.5758, 0.5623, 0.0056),
    ),
)


_SYMMETRIES: Final = "test_time.symmetries"
"""Absent from the configs of runs of old, which had no test-time augmentation."""


def published_row(run: ScoredRun) -> Published | None:
    """Return the published row of a run's settings; None where it may not stand beside one.

    It may where the whole real test set was scored by the row's own convention, and the network was
    trained as published: its inputs, weights, loss, optimizer, batches, epochs and augmentation.
    Its quirks beside those of loss and batches are not asked for. A network that was trained
    elsewhere has no such row, since nobody knows how. Neither has an ensemble, or a network scored
    with test-time augmentation: the published figures are of one network that predicts once.
    """
    if run.tag(Tag.MEMBERS) or run.settings.get(_SYMMETRIES, "none") != "none":
        return None
    if (run.tag(Tag.DATASET), run.counts.patches) != (DATASET, TEST_PATCHES):
        return None
    if not _trained_as_published(run.settings):
        return None
    rows = (row for options, row in _TABLE if _agrees(run.settings, options))
    return next((row for row in rows if row.convention is run.convention), None)


def _trained_as_published(settings: Mapping[str, str]) -> bool:
    weights = [name for name in settings if name.startswith("loss.class_weights")]
    parts = ("data.batch_size", "trainer.devices", "trainer.num_nodes",
             "trainer.accumulate_grad_batches")  # fmt: skip
    batch = 1
    for name in parts:
        text = settings.get(name, "")
        batch *= int(text) if text.isdecimal() else 0  # of all devices (-1) none knows how many
    return (
        _agrees(settings, _TRAINING) and weights == ["loss.class_weights.other"] and batch == BATCH
    )


def _agrees(settings: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(_number(settings.get(name)) == _number(each) for name, each in wanted.items())


def _number(text: str | None) -> str | float | None:
    """Return a number for its text; any other text as it is."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text
