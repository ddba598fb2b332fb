"""The groups of learning: loss, metric, optimizer, scheduler, trainer, callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

from flair2_exp.config.fields import Decides, Group, option
from flair2_exp.config.relevance import if_divided, if_series, if_trained, unless
from flair2_exp.errors import ConfigError

VALIDATED: Final = ("val/loss", "val/miou", "val/accuracy")
"""What validation measures, every epoch."""


_LOSSES: Final = "flair2_exp.training.losses"
_SCHEDULES: Final = "flair2_exp.training.schedules"
_CONSTANT, _COSINE, _PLATEAU = (
    f"{_SCHEDULES}.{kind}" for kind in ("Constant", "Cosine", "Plateau")
)


def best_direction(objective: str | list[str]) -> str | list[str]:
    """Return whether more or less of a metric is better: scores `maximize`, all else `minimize`.

    Args:
        objective: A metric's name, or a list of names.
    """
    if not isinstance(objective, str):
        return [str(best_direction(str(each))) for each in objective]
    scores = ("miou", "iou", "accuracy")
    return "maximize" if set(objective.split("/")) & set(scores) else "minimize"


@dataclass(frozen=True, kw_only=True)
class LossConfig(Group):
    """The loss of both heads."""

    node: ClassVar[str] = "loss"
    decides: ClassVar[Decides] = if_trained

    name: str = option("", chosen=True, decides=False)
    _target_: str = option("", chosen=True)
    """Its class: a `flair2_exp.training.losses.PixelLoss`."""
    aerial: float = option(1.0, 0.0, 1e6)
    """Weight of the aerial head."""
    satellite: float = option(1.0, 0.0, 1e6, decides=if_series)
    """Weight of the satellite head."""
    class_weights: Mapping[str, float] = option({"other": 0.0}, 0.0, 1e6)
    """Weight by class name; a class not named weighs 1."""
    class_weighting: Literal["none", "inverse", "sqrt_inverse", "log"] = "none"
    """By what each class's weight is multiplied, from its share p of the training pixels: 1 / p,
    1 / sqrt(p), or ENet's 1 / ln(1.02 + p); 1 on average. Classes that weigh nothing stay so."""
    satellite_class_weights: Literal["as_aerial", "reference"] = option(
        "as_aerial", decides=if_series
    )
    """`reference`: plowed land weighs nothing in the satellite head (the baseline)."""
    label_smoothing: float = option(0.0, 0.0, 0.5)
    """Share of the target that is spread over all classes."""
    gamma: float = option(
        2.0,
        0.0,
        10.0,
        decides=unless(node, f"{_LOSSES}.CrossEntropy", f"{_LOSSES}.DiceCrossEntropy"),
    )
    """Focusing exponent of the focal loss."""


@dataclass(frozen=True, kw_only=True)
class MetricConfig(Group):
    """The score."""

    node: ClassVar[str] = "metric"

    other_pixels: Literal["drop", "keep"] = "drop"
    """Whether predictions on pixels whose truth is "other" count as false positives (`keep`)."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Group):
    """The optimizer: any class of `torch.optim`."""

    node: ClassVar[str] = "optimizer"
    decides: ClassVar[Decides] = if_trained

    _target_: str = option("torch.optim.SGD", chosen=True)
    """Its dotted path, as `torch.optim.AdamW`."""
    lr: float = option(1e-3, 0.0, 1e4, chosen=True)
    """The learning rate."""
    weight_decay: float = option(0.0, 0.0, 1e4)
    options: Mapping[str, Any] = option({}, -1e9, 1e9)
    """Further keyword arguments of the class."""


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig(Group):
    """The learning rate's course over the epochs."""

    node: ClassVar[str] = "scheduler"
    decides: ClassVar[Decides] = if_trained

    name: str = option("none", chosen=True, decides=False)
    _target_: str = option("", chosen=True)
    """Its class: a `flair2_exp.training.schedules.Schedule`."""
    warmup_epochs: int = option(0, 0, 1_000_000, decides=unless(node, _PLATEAU))
    """Epochs over which the rate rises linearly to the optimizer's."""
    final_factor: float = option(0.01, 0.0, 1.0, decides=unless(node, _CONSTANT, _PLATEAU))
    """Cosine: the last learning rate over the first."""
    factor: float = option(0.5, 0.01, 0.99, decides=unless(node, _CONSTANT, _COSINE))
    """Plateau: what the learning rate is multiplied with."""
    patience: int = option(10, 0, 1_000_000, decides=unless(node, _CONSTANT, _COSINE))
    """Plateau: epochs without a better validation loss before that."""

    def validate(self) -> None:
        """Refuse a warm-up that would not happen."""
        if self.name == "plateau" and self.warmup_epochs:
            raise ConfigError(
                f"scheduler.warmup_epochs={self.warmup_epochs}: scheduler=plateau has no warm-up; "
                "use scheduler=none or cosine, or scheduler.warmup_epochs=0."
            )


@dataclass(frozen=True, kw_only=True)
class TrainerConfig(Group):
    """Where and how long to train."""

    node: ClassVar[str] = "trainer"

    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = option("auto", decides=False)
    devices: int = option(1, -1, 4096, decides=if_divided)
    """How many; -1: all GPUs. Batches are per device."""
    num_nodes: int = option(1, 1, 65_536, decides=if_divided)
    """Machines that share the training."""
    strategy: Literal[
        "auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false"
    ] = option("auto", decides=False)
    """Lightning's name of how devices work together. Strategies whose processes are copies of this
    one (`ddp_spawn`) are left out: they lose what training measured."""
    precision: Literal["32-true", "16-mixed", "bf16-mixed", "bf16-true", "64-true"] = "32-true"
    max_epochs: int = option(100, 1, 1_000_000, decides=if_trained)
    accumulate_grad_batches: int = option(1, 1, 1_000_000, decides=if_trained)
    """Batches whose gradients are summed for one step."""
    gradient_clip_val: float = option(0.0, 0.0, 1e6, decides=if_trained)
    """Largest norm of the gradients; 0 leaves them alone."""
    deterministic: bool = True
    """Whether operations without a deterministic form give a warning on a GPU."""
    limit_train_batches: int | None = option(None, 1, 1_000_000_000, decides=if_trained)
    """Batches of an epoch; null: all, as for the next two."""
    limit_val_batches: int | None = option(None, 1, 1_000_000_000)
    limit_test_batches: int | None = option(None, 1, 1_000_000_000)
    log_every_n_steps: int = option(50, 1, 1_000_000_000, decides=False)
    threads: int | None = option(None, 1, 4096, decides=False)
    """Processor threads of torch; null leaves torch's choice."""

    def validate(self) -> None:
        """Refuse a training without a device."""
        if self.devices == 0:
            raise ConfigError(
                "trainer.devices=0: expected a number from 1 up, or -1 for all devices."
            )


@dataclass(frozen=True, kw_only=True)
class CallbacksConfig(Group):
    """Checkpoints, early stopping, progress."""

    node: ClassVar[str] = "callbacks"
    decides: ClassVar[Decides] = if_trained

    name: str = option("", chosen=True, decides=False)
    monitor: Literal["val/loss", "val/miou", "val/accuracy"] = "val/loss"
    """The metric by which the best checkpoint is chosen and training stops."""
    mode: Literal["min", "max"] = option("min", decides=False)
    """Whether less or more of `monitor` is better; which, `monitor` says already."""
    patience: int = option(30, 0, 1_000_000)
    """Epochs without a better `monitor` before training stops; 0: never."""
    save_minutes: float = option(10.0, 0.0, 1e6, decides=False)
    """Minutes between two checkpoints within an epoch, beside that at its end; 0: none within."""
    progress: Literal["auto", "always", "never"] = option("auto", decides=False)
    """`auto`: bars on a terminal, one line per epoch elsewhere."""
    panel_patches: int = option(6, 0, 64, decides=False)
    """Test patches in the panel of images, truths and predictions."""

    def validate(self) -> None:
        """Refuse a mode by which the worst checkpoint would be kept."""
        maximised = best_direction(self.monitor) == "maximize"
        best, words = ("max", "higher") if maximised else ("min", "lower")
        if self.mode != best:
            raise ConfigError(
                f"callbacks.mode={self.mode} would keep the worst checkpoint: {self.monitor} is "
                f"better the {words} it is; use callbacks.mode={best}."
            )
