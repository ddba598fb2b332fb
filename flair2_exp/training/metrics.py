"""Further metrics: any of torchmetrics, over the pixels that count.

Each is updated with predicted and true class indices (N,) int64 of the pixels that count, and gives
one number.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from flair2_exp.config.training import BestConfig, MetricConfig, require_mode
from flair2_exp.errors import ConfigError, first_line, nearest
from flair2_exp.registry import construct, locate, written


def build_metrics(
    options: MetricConfig, classes: int, *, has_other: bool = True
) -> dict[str, Metric]:
    """Build the further metrics, by name.

    Their constructors are given, by the names of their arguments, `num_classes`, `task`
    (`multiclass`) and `ignore_index` (of "other", the last class; null where there is none or with
    `metric.other_pixels=keep`); what a metric's node sets itself replaces that.

    Raises:
        ConfigError: There is no such class, or it does not take these options.
    """
    ignored = classes - 1 if has_other and options.other_pixels == "drop" else None
    given = {"num_classes": classes, "task": "multiclass", "ignore_index": ignored}
    metrics: dict[str, Metric] = {}
    for name, part in options.further.parts.items():
        own = {key: value for key, value in part.items() if key != "_target_"}
        where = f"metric.further.{name}"
        try:
            metrics[name] = construct(
                Metric,  # type: ignore[type-abstract]
                part["_target_"],
                where,
                given={key: value for key, value in given.items() if key not in own},
                options=own,
            )
        except (TypeError, ValueError) as error:
            raise ConfigError(_refusal(where, part["_target_"], own, error)) from error
    return metrics


def update(
    metrics: Mapping[str, Metric], prediction: Tensor, truth: Tensor, dropped: int | None
) -> None:
    """Update metrics with the pixels that count.

    Args:
        metrics: By name.
        prediction: Class indices, any shape.
        truth: Likewise, of the same shape.
        dropped: The class whose true pixels do not count; None: all do.
    """
    if not metrics:
        return
    if dropped is not None:
        counted = truth != dropped
        prediction, truth = prediction[counted], truth[counted]
    if truth.numel():
        for metric in metrics.values():
            metric.update(prediction.flatten(), truth.flatten())


def _refusal(where: str, target: str, own: Mapping[str, Any], error: Exception) -> str:
    """Return what torchmetrics refuses; it passes options on, and names no neighbour."""
    located = locate(target, Metric, f"{where}._target_")  # type: ignore[type-abstract]
    names = [name for name in inspect.signature(located).parameters if name != "kwargs"]
    misspelt = [name for name in own if name not in names]
    hint = f" {misspelt[0]}: {nearest(misspelt[0], names)}" if misspelt else ""
    return f"{where}: {str(error).rstrip('.')}.{hint}"


def require_metrics(
    options: MetricConfig, best: BestConfig, classes: int, *, has_other: bool = True
) -> None:
    """Refuse metrics that cannot be computed of class indices, or do not give one number.

    Raises:
        ConfigError: Of the first one; or the best checkpoint would be the worst by it.
    """
    for name, metric in build_metrics(options, classes, has_other=has_other).items():
        value = _tried(name, metric, classes)
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            what = f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else str(value)
            raise ConfigError(
                f"metric.further.{name}: {written(type(metric))} gives {what}.\n"
                f"Expected one number; many take metric.further.{name}.average=macro."
            )
        if best.monitor == f"val/{name}" and metric.higher_is_better is not None:
            require_mode(best, "max" if metric.higher_is_better else "min")


def _tried(name: str, metric: Metric, classes: int) -> Any:
    pixels = torch.arange(classes)
    try:
        metric.update(pixels, pixels)
        return metric.compute()
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        reason = first_line(error)
        raise ConfigError(
            f"metric.further.{name}: {written(type(metric))}: {reason}\n"
            "Expected a metric of predicted and true class indices (pixels,)."
        ) from error
