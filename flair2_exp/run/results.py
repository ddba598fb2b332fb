"""What a run found: files in its folder, entries of its MLflow run, lines for the terminal."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flair2_exp.config import schema
from flair2_exp.config.schema import Config
from flair2_exp.files import replacing, write_text

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from flair2_exp.tracking.run import Run
    from flair2_exp.training.callbacks import PanelCollector
    from flair2_exp.training.task import SegmentationTask

log = logging.getLogger(__name__)

METRICS: Final = "metrics.json"
CONFUSION: Final = "confusion_per_patch.npz"
HISTORY: Final = "history.csv"
SYNTHETIC: Final = "Scores on the synthetic sample: they say nothing about real land cover."

_SUMMARY: Final = ("test/miou", "val/miou", "inference/seconds_per_patch", "train/seconds")


def save_results(task: SegmentationTask, panel: PanelCollector, folder: Path, title: str) -> None:
    """Write the counts per patch and the figures of a test."""
    import numpy as np

    from flair2_exp.nomenclature import classes
    from flair2_exp.tracking import figures

    patches = sorted(task.results)
    with replacing(folder / CONFUSION) as fresh, fresh.open("wb") as file:
        np.savez_compressed(
            file,
            patch_ids=np.array(patches),
            areas=np.array([task.results[each].area for each in patches]),
            confusion=np.stack([task.results[each].confusion for each in patches]),
            classes=np.array(task.class_names),
        )
    shown = classes(len(task.class_names))
    drawn = figures.confusion(task.test_confusion(), shown, title=title)
    figures.save(drawn, folder / "confusion.png")
    if panel.rows:
        drawn = figures.panel(
            np.stack([row.image for row in panel.rows]),
            np.stack([row.truth for row in panel.rows]),
            np.stack([row.prediction for row in panel.rows]),
            [row.patch for row in panel.rows],
            shown,
            title=title,
        )
        figures.save(drawn, folder / "panel.png")


def read_metrics(folder: Path) -> dict[str, float]:
    """The numbers in a run's `metrics.json`; empty where it has none (or none that is whole)."""
    try:
        metrics: dict[str, float] = json.loads((folder / METRICS).read_text())
    except (OSError, ValueError):
        return {}
    return metrics


def finish(
    config: Config, folder: Path, run: Run, metrics: Mapping[str, float], checkpoint: Path
) -> None:
    """Write `metrics.json`, hand all results to the run, and tell the user.

    Args:
        config: The experiment's.
        folder: The run's.
        run: Its MLflow run, or what stands in for it.
        metrics: All that it measured.
        checkpoint: The tested one.
    """
    from flair2_exp.tracking.summary import summary

    write_text(folder / METRICS, json.dumps(metrics, indent=2, sort_keys=True) + "\n")
    # Losses and scores are in the run by epoch; these are the run's own.
    by_epoch = ("train/l", "val/", "test/iou/")
    logged = ("test/loss", "test/miou", "test/accuracy")
    own = {n: v for n, v in metrics.items() if not n.startswith(by_epoch) and n not in logged}
    run.log_metrics(own)
    run.log_metrics({f"best/{n}": v for n, v in metrics.items() if n.startswith("val/")})
    for name in (METRICS, CONFUSION, HISTORY):
        if (folder / name).exists():
            run.log_artifact(folder / name, "results")
    for path in sorted(folder.glob("*.png")):
        run.log_artifact(path)  # at the root, where MLflow's comparison of runs looks for images
    if checkpoint.exists():
        run.set_tags({"flair2.best_checkpoint": checkpoint.absolute()})
    run.describe(
        summary(
            facts=facts(config),
            scores={n: v for n, v in metrics.items() if n in _SUMMARY},
            folder=str(folder.absolute()),
            note=SYNTHETIC if config.dataset.name == "sample" else "",
        )
    )
    log.info("%s", result_table(config, folder, metrics, run.run_id))


def facts(config: Config) -> dict[str, object]:
    """What an experiment is, in a few words each."""
    satellite = schema.reads_satellite(config)
    return {
        "model": config.model.name,
        "encoder": config.model.encoder if schema.reads_aerial(config) else "-",
        "dataset": f"{config.dataset.name}, split {config.split.name}",
        "satellite series": config.s2_preproc.name if satellite else "-",
        "augmentation": config.aug.name,
        "metadata": config.metadata.name,
        "compat": config.compat,
        "seed": config.seed,
    }


def result_table(config: Config, folder: Path, metrics: Mapping[str, float], run_id: str) -> str:
    """The scores and where to look, for the terminal."""
    lines = [""]
    if config.dataset.name == "sample":
        lines += [SYNTHETIC]
    prefix = "test/iou/"
    per_class = {n.removeprefix(prefix): v for n, v in metrics.items() if n.startswith(prefix)}
    lines += [f"  {name:<24}{value:7.4f}" for name, value in per_class.items()]
    shown = {
        "test mIoU": "test/miou",
        "most frequent class": "test/miou_most_frequent_class",
        "val mIoU": "val/miou",
        "training, s": "train/seconds",
        "inference, s a patch": "inference/seconds_per_patch",
    }
    for label, name in shown.items():
        if name in metrics:
            lines += [f"{label:<26}{metrics[name]:7.4f}"]
    lines += ["", f"results   {folder}"]
    if run_id:
        lines += [f"MLflow    run {run_id} in experiment {config.tracking.experiment}: make ui"]
    return "\n".join(lines)


def most_frequent_class_miou(confusion: npt.NDArray[np.int64]) -> float:
    """The score of predicting the most frequent scored class of the truth everywhere.

    Args:
        confusion: (C, C) counts, rows truth.
    """
    import numpy as np

    from flair2_exp.nomenclature import SCORED
    from flair2_exp.score import miou

    truth = confusion.sum(axis=1)
    constant = np.zeros_like(confusion)
    constant[:, int(truth[:SCORED].argmax())] = truth
    return float(miou(constant))
