"""What a run measured: files in its folder, entries of its MLflow run, lines for the terminal.

A number has the same name in `metrics.json`, as a metric of the MLflow run and in its description:

- `train/NAME`, `val/NAME`: of an epoch; as one number, of the last epoch that was trained.
- `best/epoch`: the epoch, counted from 1, whose checkpoint is the best by `callbacks.best.monitor`,
  and which is tested; `best/val/NAME`: what validation measured of it. `objective=val/NAME` returns
  this one to a sweep or a search.
- `test/NAME`: of the tested checkpoint, over all test patches.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from flair2_exp.config.experiment import Config
from flair2_exp.files import replacing, write_text
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.tracking.tags import Tag

if TYPE_CHECKING:
    from flair2_exp.nomenclature import Nomenclature
    from flair2_exp.tracking.run import Run
    from flair2_exp.training.panel import PanelRow
    from flair2_exp.training.task import PatchResult

log = logging.getLogger(__name__)

SYNTHETIC: Final = "Scores on the synthetic sample: they say nothing about real land cover."

PANEL_SIDE: Final = 256
"""Pixels of the longer side of an image in `panel.npz`, at most: it is for looking at."""

_OF_CLASS: Final = "test/iou/"
_SUMMARY: Final = ("test/miou", "best/val/miou", "inference/seconds_per_patch", "train/seconds")


def title(config: Config, score: float) -> str:
    """Return the line above a figure; scores on the sample are always called that."""
    name = "synthetic sample" if config.is_synthetic else config.dataset.name
    return f"{config.name}, {name}: test mIoU {score:.4f}"


def save_results(
    results: Mapping[str, PatchResult],
    nomenclature: Nomenclature,
    rows: Sequence[PanelRow],
    folder: RunFolder,
    heading: str,
) -> None:
    """Write the counts per patch and the figures of a test.

    Args:
        results: By patch id.
        nomenclature: The classes.
        rows: The patches that the panel shows.
        folder: The run's.
        heading: The line above a figure (`title`).
    """
    import numpy as np

    patches = sorted(results)
    with replacing(folder.confusion) as fresh, fresh.open("wb") as file:
        np.savez_compressed(
            file,
            patch_ids=np.array(patches),
            areas=np.array([results[each].area for each in patches]),
            confusion=np.stack([results[each].confusion for each in patches]),
            classes=np.array(nomenclature.names),
            colours=np.array([each.colour for each in nomenclature.classes]),
            scored=np.array(nomenclature.scored),
        )
    try:
        if rows:
            _save_panel(rows, folder)
        _draw(results, nomenclature, rows, folder, heading)
    except Exception as error:  # the counts are what a run is worth, drawn or not
        log.warning("no figures in %s: %s", folder, error)


def _save_panel(rows: Sequence[PanelRow], folder: RunFolder) -> None:
    """Write the panel's patches: names (N,), images (N, h, w, 3), truths, predictions (N, H, W)."""
    import numpy as np

    step = -(-max(rows[0].image.shape[:2]) // PANEL_SIDE)
    with replacing(folder.panel) as fresh, fresh.open("wb") as file:
        np.savez_compressed(
            file,
            patch_ids=np.array([row.patch for row in rows]),
            images=np.stack([row.image[::step, ::step] for row in rows]),
            truths=np.stack([row.truth for row in rows]),
            predictions=np.stack([row.prediction for row in rows]),
        )


def _draw(
    results: Mapping[str, PatchResult],
    nomenclature: Nomenclature,
    rows: Sequence[PanelRow],
    folder: RunFolder,
    heading: str,
) -> None:
    import numpy as np

    from flair2_exp.tracking import figures

    counts = np.sum([each.confusion for each in results.values()], axis=0, dtype=np.int64)
    drawn = figures.confusion(counts, nomenclature, title=heading)
    with replacing(folder.confusion_figure) as fresh:
        drawn.savefig(fresh, format="png")
    if rows:
        drawn = figures.panel(
            np.stack([row.image for row in rows]),
            np.stack([row.truth for row in rows]),
            np.stack([row.prediction for row in rows]),
            [row.patch for row in rows],
            nomenclature,
            title=heading,
        )
        with replacing(folder.panel_figure) as fresh:
            drawn.savefig(fresh, format="png")


def finish(
    config: Config,
    folder: RunFolder,
    run: Run,
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
) -> None:
    """Write `metrics.json`, hand all results to the MLflow run, and tell the user.

    Args:
        config: The experiment's.
        folder: The run's.
        run: Its MLflow run, or what stands in for it.
        metrics: All that it measured.
        tags: The run's.
    """
    write_text(folder.metrics, json.dumps(metrics, indent=2, sort_keys=True) + "\n")
    hand_over(config, folder, run, metrics, tags)
    log.info("%s", result_table(config, folder, metrics, run.run_id))


def is_by_epoch(name: str) -> bool:
    """Return whether a metric reaches the MLflow run by epoch, as Lightning logs it.

    All others are single numbers and stand at step 0: MLflow's pages draw a bar there, and a line
    of one dot at any later step.
    """
    return name.startswith(("train/l", "val/"))


def hand_over(
    config: Config,
    folder: RunFolder,
    run: Run,
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
) -> None:
    """Give an MLflow run what a folder holds of results, and its description.

    Args:
        config: The experiment's.
        folder: The run's.
        run: Its MLflow run, or what stands in for it.
        metrics: All that it measured.
        tags: The run's.
    """
    from flair2_exp.score import convention_of
    from flair2_exp.tracking.summary import summary

    run.log_metrics({n: v for n, v in metrics.items() if not is_by_epoch(n)})
    for path in (folder.metrics, folder.confusion, folder.history):
        if path.exists():
            run.log_artifact(path, "results")
    for path in (folder.confusion_figure, folder.panel_figure):
        if path.exists():  # at the root, where MLflow's comparison of runs looks for images
            run.log_artifact(path)
    if folder.best.exists():
        run.set_tags({Tag.BEST_CHECKPOINT: folder.best.absolute()})
    run.describe(
        summary(
            facts=facts(config, tags) | {"mIoU": convention_of(config.metric.other_pixels)},
            scores={n: v for n, v in metrics.items() if n in _SUMMARY},
            folder=str(folder.path.absolute()),
            note=" ".join(caveats(config, metrics)),
        )
    )


def facts(config: Config, tags: Mapping[str, str]) -> dict[str, object]:
    """Return what an experiment is, in a few words each.

    Args:
        config: The experiment's; of an ensemble, its first member's.
        tags: The run's.
    """
    own: dict[str, object] = {
        "model": config.model.name,
        "encoder": config.model.encoder if "aerial" in config.reads else "-",
        "dataset": f"{config.dataset.name}, split {config.split.name}",
        "satellite series": config.s2_preproc.name if "satellite" in config.reads else "-",
        "augmentation": config.aug.name,
        "metadata": config.metadata.name,
        "compat": config.compat,
        "seed": config.seed,
        "test-time augmentation": config.test_time.symmetries,
    }
    if Tag.MEMBERS not in tags:
        return own
    members = tags[Tag.MEMBERS].split("; ")
    own |= {"members": f"{len(members)}: {'; '.join(members)}"}
    if len(members) > 1:  # what they share is said of all
        shared = ("dataset", "compat", "test-time augmentation", "members")
        return {"model": tags[Tag.MODEL], "reads": tags[Tag.READS]} | {n: own[n] for n in shared}
    return own


def caveats(config: Config, metrics: Mapping[str, float]) -> list[str]:
    """Return what a reader of the scores must know: that they say little, or nothing.

    Args:
        config: The experiment's.
        metrics: All that it measured.
    """
    texts = [SYNTHETIC] if config.is_synthetic else []
    if "test/miou" not in metrics:
        return texts
    patches = int(metrics.get("test/patches", 0))
    if patches == 1:
        texts.append("One test patch: its score says nothing about others.")
    classes = [name for name in metrics if name.startswith(_OF_CLASS)]
    if len(classes) == 1:
        texts.append(f"Only {classes[0].removeprefix(_OF_CLASS)} is in truth and prediction.")
    return texts


def tested_checkpoint(config: Config, metrics: Mapping[str, float]) -> str:
    """Return which epoch's checkpoint the results are of, and by what it was chosen."""
    if not config.train:
        weights = config.checkpoint or config.model.weights
        return f"{weights}, as it is" if weights else "a network that nothing has trained"
    monitor = config.callbacks.best.monitor
    epoch, epochs = metrics.get("best/epoch"), metrics.get("train/epochs")
    value = metrics.get(f"best/{monitor}")
    if epoch is None or epochs is None or value is None:
        return ""
    chosen = f"epoch {epoch:.0f} of {epochs:.0f}, best by {monitor} ({value:.4f})"
    others = [name for name in config.objectives if name != monitor and name.startswith("val/")]
    return f"{chosen}, not by objective={others[0]}" if others else chosen


def result_table(
    config: Config, folder: RunFolder, metrics: Mapping[str, float], run_id: str
) -> str:
    """Return the scores and where to look, for the terminal."""
    from flair2_exp.score import convention_of

    per_class = {
        n.removeprefix(_OF_CLASS): v for n, v in metrics.items() if n.startswith(_OF_CLASS)
    }
    lines = ["", *caveats(config, metrics)]
    lines += [f"  {name:<24}{value:7.4f}" for name, value in per_class.items()]
    shown = {
        "test mIoU": "test/miou",
        "most frequent class": "test/miou_most_frequent_class",
        "val mIoU, best epoch": "best/val/miou",
        "training, s": "train/seconds",
        "inference, s per patch": "inference/seconds_per_patch",
    }
    for label, name in shown.items():
        if name in metrics:
            lines += [f"{label:<26}{metrics[name]:7.4f}"]
    facts = {
        "mIoU": convention_of(config.metric.other_pixels),
        "patches": f"{metrics['test/patches']:,.0f} tested" if "test/patches" in metrics else "",
        "tested" if "test/miou" in metrics else "best": tested_checkpoint(config, metrics),
        "results": str(folder),
    }
    if run_id:
        experiment = config.tracking.experiment
        facts["MLflow"] = f"run {run_id} in experiment {experiment}; to look at it: {_look(config)}"
    return "\n".join([*lines, "", *(f"{n:<9} {fact}" for n, fact in facts.items() if fact)])


def _look(config: Config) -> str:
    """Return the command that shows the MLflow store."""
    if config.tracking.uri and config.tracking.uri.startswith("http"):
        return config.tracking.uri
    return "flair2-exp ui"
