"""A predictor's scores on a part of its runs' own data, counted as a run's test counts them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flair2_exp.config.experiment import Config
from flair2_exp.data import sentinel2
from flair2_exp.data.dataset import BatchKey
from flair2_exp.data.normalisation import scaled
from flair2_exp.errors import ConfigError, DataError
from flair2_exp.inference.predictor import Predictor
from flair2_exp.inference.stored import StoredRun
from flair2_exp.lifecycle.record import RunRecord
from flair2_exp.progress import Progress
from flair2_exp.score import confusion_matrix, most_frequent_class_miou
from flair2_exp.tracking.tags import Tag
from flair2_exp.training.metrics import build_metrics, update
from flair2_exp.training.panel import PanelCollector, PanelRow, shown_bands
from flair2_exp.training.task import PatchResult, all_scores

PREFIXES: Final[Mapping[str, str]] = {"train": "train/", "validation": "val/", "test": "test/"}
"""Of the metrics' names, by part of the split."""


@dataclass
class Evaluation:
    """What a predictor scored on a part of the split.

    Attributes:
        results: The counts of each patch, by its id.
        metrics: By name, as a run's `metrics.json` has them.
        shown: Class indices, (H, W) uint8, of the patches that a panel shows, by their position in
            the first member's index.
    """

    results: dict[str, PatchResult] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    shown: dict[int, NDArray[np.uint8]] = field(default_factory=dict)


def evaluate(
    predictor: Predictor,
    part: str = "test",
    *,
    batch_size: int = 1,
    workers: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Predict a part of the runs' own data and score it as a test does; nothing is written.

    Args:
        predictor: Of networks that go together (`require_scorable`, which is not asked here).
        part: `train`, `validation` or `test`.
        batch_size: Patches at once.
        workers: Processes that read.
        progress: Is called after each patch.

    Returns:
        Metrics under `train/`, `val/` or `test/`, and `inference/seconds` of the whole loop,
        reading included.

    Raises:
        FlairError: The data are not there, or the part does not exist.
    """
    config, done = config_of(predictor.members[0].stored), Evaluation()
    nomenclature = predictor.nomenclature
    classes = len(nomenclature.names)
    kept = config.metric.other_pixels == "keep" or not nomenclature.has_other
    dropped = None if kept else classes - 1
    further = build_metrics(config.metric, classes, has_other=nomenclature.has_other)
    positions = predictor.data[0].split.parts().get(part, np.empty(0, np.int64))
    wanted = _spaced(positions, config.callbacks.panel.patches)
    begun = time.perf_counter()
    for patch in predictor.split(part, batch_size=batch_size, workers=workers):
        truth, predicted = patch.truth, patch.prediction.classes
        counts = confusion_matrix(truth, predicted, classes, drop_truth=dropped)
        done.results[patch.patch_id] = PatchResult(patch.area, counts.astype(np.int32))
        update(further, _tensor(predicted), _tensor(truth), dropped)
        if patch.patch in wanted:
            done.shown[patch.patch] = predicted
        if progress is not None:
            progress(len(done.results), len(positions))
    seconds = time.perf_counter() - begun
    prefix, patches = PREFIXES[part], len(done.results)
    summed = np.stack([each.confusion for each in done.results.values()]).sum(0, dtype=np.int64)
    values = {n: float(metric.compute()) for n, metric in further.items() if metric.update_called}
    done.metrics = {
        **all_scores(prefix, summed, nomenclature),
        **{f"{prefix}{name}": value for name, value in values.items() if np.isfinite(value)},
        f"{prefix}patches": float(patches),
        f"{prefix}miou_most_frequent_class": most_frequent_class_miou(summed, nomenclature.scored),
        "inference/seconds": seconds,
        "inference/seconds_per_patch": seconds / patches,
    }
    return done


def _tensor(classes: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(classes.astype(np.int64))


def require_scorable(predictor: Predictor, part: str = "test") -> None:
    """Refuse networks whose common score on a part of their data would mean nothing.

    Raises:
        ConfigError: Their data sets, splits or metric settings differ.
        DataError: The part differs between them; or the test part is not that of their own tests.
    """
    stored = [member.stored for member in predictor.members]
    kinds: dict[str, Callable[[StoredRun], str]] = {
        "data sets": lambda run: config_of(run).dataset.name,
        "splits": lambda run: config_of(run).split.name,
        "metric settings": lambda run: config_of(run).metric_setting,
    }
    first = stored[0]
    for kind, of in kinds.items():
        for other in stored:
            if of(other) != of(first):
                raise ConfigError(
                    f"runs of different {kind} have no common score: {first.name} ({of(first)}), "
                    f"{other.name} ({of(other)}).\nName runs of one data set, split and metric."
                )
    # Masks are always read: the part's patches and labels count, and what all members read.
    common = frozenset.intersection(*(data.reads for data in predictor.data))
    prints = [data.fingerprint_of(part, reads=common) for data in predictor.data]
    for run, data, own in zip(stored, predictor.data, prints, strict=True):
        if own != prints[0]:
            raise DataError(
                f"{first.name} and {run.name} have different {part} patches, images or labels.\n"
                "Name runs of one data set and split."
            )
        tested = record_of(run).tags.get(Tag.TEST_FINGERPRINT)
        if part == "test" and tested and data.fingerprint_of("test") != tested:
            raise DataError(
                f"the test part of {run.name} is not the one of its own test: what is in "
                f"{data.groups.dataset.root} has changed.\nPut the data back, or test the run on "
                "these: train=false checkpoint=PATH."
            )


def config_of(stored: StoredRun) -> Config:
    """Return the config of a run.

    Raises:
        ConfigError: It is a lone checkpoint.
    """
    if stored.config is None:
        raise ConfigError(
            f"{stored.name} is a checkpoint without its run: it does not say what it is scored on."
            "\nName the run's folder."
        )
    return stored.config


def record_of(stored: StoredRun) -> RunRecord:
    """Return the record of a run that has a config."""
    assert stored.record is not None, "a run with a config has a record"
    return stored.record


def _spaced(positions: NDArray[np.int64], count: int) -> set[int]:
    """Return evenly spaced ones of a part's patches, as a test's panel shows them."""
    places = np.linspace(0, max(0, len(positions) - 1), min(count, len(positions)))
    return {int(positions[at]) for at in places.round().astype(int)}


def panel(predictor: Predictor, predicted: Mapping[int, NDArray[np.uint8]]) -> list[PanelRow]:
    """Return test patches for a panel, with the images that the first member reads."""
    data = predictor.data[0]
    places = {int(patch): at for at, patch in enumerate(data.split.test)}
    key = BatchKey(0, tuple(places[patch] for patch in predicted))
    batch = data.dataset("test")[key] if predicted else None
    if not isinstance(batch, dict):  # a damaged one: the counts are what a run is worth
        return []
    by_id = {str(data.index.ids[patch]): each for patch, each in predicted.items()}
    collector = PanelCollector(
        len(predicted),
        len(predicted),
        shown_bands(data.bands),
        stretched=data.source.scale != 255,
    )
    divisor = sentinel2.divisor(data.groups.s2_preproc)
    shown_batch = scaled(batch, image=data.source.scale, series=divisor)
    classes = np.stack([by_id[patch_id] for patch_id in batch["patch_id"]])
    collector.keep(shown_batch, torch.from_numpy(classes))
    return collector.rows
