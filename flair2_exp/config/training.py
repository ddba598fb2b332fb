"""The groups of learning: loss, metric, optimizer, scheduler, trainer, callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal

from flair2_exp.config.fields import Decides, Group, OpenGroup, option
from flair2_exp.config.relevance import (
    if_averaged,
    if_averaged_exponentially,
    if_batches_shared,
    if_divided,
    if_series,
    if_trained,
    if_turned_in_tests,
    unless,
)
from flair2_exp.errors import ConfigError

VALIDATED: Final = ("val/loss", "val/miou", "val/accuracy")
"""What validation measures, every epoch, beside the further metrics."""


_LOSSES: Final = "flair2_exp.training.losses"
_SCHEDULES: Final = "flair2_exp.training.schedules"
_CONSTANT, _COSINE, _PLATEAU = (
    f"{_SCHEDULES}.{kind}" for kind in ("Constant", "Cosine", "Plateau")
)
_PLATEAUS: Final = (_PLATEAU, "torch.optim.lr_scheduler.ReduceLROnPlateau")


def best_direction(objective: str | list[str]) -> str | list[str]:
    """Return whether more or less of a metric is better: scores `maximize`, all else `minimize`.

    A further metric of validation counts as a score, unless its name says that it is an error.

    Args:
        objective: A metric's name, or a list of names.
    """
    if not isinstance(objective, str):
        return [str(best_direction(str(each))) for each in objective]
    errors = ("loss", "error", "distance", "epoch")
    measured, _, name = objective.partition("/")
    is_score = measured in ("val", "test") and not any(word in name.lower() for word in errors)
    scores = ("miou", "iou", "accuracy")
    is_score = is_score or bool(set(objective.split("/")) & set(scores))
    return "maximize" if is_score else "minimize"


@dataclass(frozen=True, kw_only=True)
class LossConfig(Group):
    """The loss of both heads."""

    node: ClassVar[str] = "loss"
    decides: ClassVar[Decides] = if_trained

    name: str = option("", chosen=True, decides=False)
    _target_: str = option("", chosen=True)
    """The loss's class: any `torch.nn.Module` over logits and target, as those of
    `flair2_exp.training.losses`."""
    options: Mapping[str, Any] = option({}, -1e9, 1e9)
    """Further options of the class, by the names of its constructor's arguments."""
    aerial: float = option(1.0, 0.0, 1e6)
    """Weight of the aerial head's loss."""
    satellite: float = option(1.0, 0.0, 1e6, decides=if_series)
    """Weight of the satellite head's loss."""
    class_weights: Mapping[str, float] = option({"other": 0.0}, 0.0, 1e6)
    """Weight by class name; a class not named weighs 1."""
    class_weighting: Literal["none", "inverse", "sqrt_inverse", "log"] = "none"
    """What each class's weight is multiplied by, from its share p of the training pixels: 1 / p
    (`inverse`), 1 / sqrt(p) (`sqrt_inverse`) or ENet's 1 / ln(1.02 + p) (`log`), scaled to 1 on
    average. A class of weight 0 keeps it."""
    satellite_class_weights: Literal["as_aerial", "reference"] = option(
        "as_aerial", decides=if_series
    )
    """Class weights of the satellite head: those of the aerial head, or these with 0 for plowed
    land (`reference`, the baseline)."""
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
class FurtherMetrics(OpenGroup):
    """Metrics of torchmetrics beside the score, by name: `NAME: {_target_: ...}`."""

    node: ClassVar[str] = "metric.further"

    def validate(self) -> None:
        """Refuse the names of what is measured already."""
        taken = {"loss", "miou", "accuracy", "iou", "patches",
                 "miou_most_frequent_class"}  # fmt: skip
        for name in self.parts:
            if name in taken:
                raise ConfigError(
                    f"metric.further.{name}: val/{name} or test/{name} is measured already; "
                    f"choose another name, as my_{name}."
                )


@dataclass(frozen=True, kw_only=True)
class MetricConfig(Group):
    """The score, and further metrics beside it."""

    node: ClassVar[str] = "metric"

    other_pixels: Literal["drop", "keep"] = "drop"
    """Whether predictions on pixels whose truth is "other" count as false positives (`keep`)."""
    further: FurtherMetrics = field(default_factory=FurtherMetrics)
    """Logged as `val/NAME` and `test/NAME`."""


@dataclass(frozen=True, kw_only=True)
class TestTimeConfig(Group):
    """Test-time augmentation: each test patch is predicted in several symmetries of the square."""

    __test__: ClassVar[bool] = False  # not one of pytest's
    node: ClassVar[str] = "test_time"

    name: str = option("none", decides=False)
    symmetries: Literal["none", "flips", "d4"] = option("none", decides=if_turned_in_tests)
    """`flips`: the patch and its three flips; `d4`: all eight symmetries. Series are turned alike,
    predictions turned back, and the probabilities averaged."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Group):
    """The optimizer: any class of `torch.optim`, or one of the user's."""

    node: ClassVar[str] = "optimizer"
    decides: ClassVar[Decides] = if_trained

    _target_: str = option("torch.optim.SGD", chosen=True)
    """The optimizer's class, as `torch.optim.AdamW`."""
    lr: float = option(1e-3, 0.0, 1e4, chosen=True)
    """The learning rate."""
    weight_decay: float = option(0.0, 0.0, 1e4)
    """Weight decay, applied by the optimizer's own rule."""
    encoder_lr_factor: float = option(1.0, 0.0, 1e4)
    """Factor on `lr` for the network's encoder."""
    layer_decay: float = option(1.0, 0.01, 1.0)
    """Factor on the learning rate from each stage of the encoder to the next shallower one."""
    decay_norms: bool = True
    """Whether the weights of norms, biases and other vectors decay as well."""
    options: Mapping[str, Any] = option({}, -1e9, 1e9)
    """Further keyword arguments of the class."""


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig(Group):
    """The learning rate's course over the epochs."""

    node: ClassVar[str] = "scheduler"
    decides: ClassVar[Decides] = if_trained

    name: str = option("none", chosen=True, decides=False)
    _target_: str = option("", chosen=True)
    """The schedule's class: any `torch.optim.lr_scheduler.LRScheduler`, as those of
    `flair2_exp.training.schedules`."""
    options: Mapping[str, Any] = option({}, -1e9, 1e9)
    """Further options of the class, by the names of its constructor's arguments."""
    interval: Literal["epoch", "step"] = option("epoch", decides=unless(node, *_PLATEAUS))
    """Whether the rate changes after each epoch, or after each step of the optimizer."""
    warmup_epochs: int = option(0, 0, 1_000_000, decides=unless(node, _PLATEAU))
    """Epochs over which the rate rises linearly to the optimizer's."""
    final_factor: float = option(0.01, 0.0, 1.0, decides=unless(node, _CONSTANT, _PLATEAU))
    """For `scheduler=cosine`: the last learning rate as a share of the first."""
    factor: float = option(0.5, 0.01, 0.99, decides=unless(node, _CONSTANT, _COSINE))
    """For `scheduler=plateau`: what the learning rate is multiplied by."""
    patience: int = option(10, 0, 1_000_000, decides=unless(node, _CONSTANT, _COSINE))
    """For `scheduler=plateau`: epochs without a better validation loss before the rate falls."""

    def validate(self) -> None:
        """Refuse a warm-up that would not happen, and a plateau of steps."""
        if self._target_ not in _PLATEAUS:
            return
        if self.warmup_epochs:
            raise ConfigError(
                f"scheduler.warmup_epochs={self.warmup_epochs}: scheduler=plateau has no warm-up; "
                "use scheduler=none or cosine, or scheduler.warmup_epochs=0."
            )
        if self.interval == "step":
            raise ConfigError(
                "scheduler.interval=step: scheduler=plateau follows the validation loss, which is "
                "measured once per epoch; use scheduler.interval=epoch."
            )


@dataclass(frozen=True, kw_only=True)
class TrainerConfig(Group):
    """Where and how long to train."""

    node: ClassVar[str] = "trainer"

    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = option("auto", decides=False)
    """The kind of device that trains; `auto` takes a GPU where there is one."""
    devices: int = option(1, -1, 4096, decides=if_divided)
    """How many devices train on each machine; -1: all GPUs. Batch sizes are per device."""
    num_nodes: int = option(1, 1, 65_536, decides=if_divided)
    """Machines that share the training."""
    sync_batchnorm: bool = option(False, decides=if_batches_shared)
    """Whether batch normalisation is over the batches of all devices together, not over each
    device's own."""
    strategy: Literal[
        "auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false"
    ] = option("auto", decides=False)
    """Lightning's name of how devices work together. Strategies whose processes are copies of this
    one (`ddp_spawn`) are not offered: they lose what training measured."""
    precision: Literal["32-true", "16-mixed", "bf16-mixed", "bf16-true", "64-true"] = "32-true"
    """Precision of the arithmetic, by Lightning's names; `16-mixed` needs a GPU."""
    max_epochs: int = option(100, 1, 1_000_000, decides=if_trained)
    """Epochs after which training ends, if nothing ends it before."""
    accumulate_grad_batches: int = option(1, 1, 1_000_000, decides=if_trained)
    """Batches whose gradients are summed for one step."""
    gradient_clip_val: float = option(0.0, 0.0, 1e6, decides=if_trained)
    """Largest norm of the gradients; 0 leaves them alone."""
    deterministic: bool = True
    """Whether operations without a deterministic form give a warning on a GPU."""
    limit_train_batches: int | None = option(None, 1, 1_000_000_000, decides=if_trained)
    """Training batches per epoch; null: all."""
    limit_val_batches: int | None = option(None, 1, 1_000_000_000)
    """Validation batches per epoch; null: all."""
    limit_test_batches: int | None = option(None, 1, 1_000_000_000)
    """Test batches; null: all."""
    log_every_n_steps: int = option(50, 1, 1_000_000_000, decides=False)
    """Steps between two recorded values of the learning rate."""
    threads: int | None = option(None, 1, 4096, decides=False)
    """Processor threads of torch; null leaves torch's choice."""

    def validate(self) -> None:
        """Refuse a training without a device."""
        if self.devices == 0:
            raise ConfigError(
                "trainer.devices=0: expected a number from 1 up, or -1 for all devices."
            )


@dataclass(frozen=True, kw_only=True)
class BestConfig(Group):
    """Which epoch's checkpoint is the best, and is tested."""

    node: ClassVar[str] = "callbacks.best"

    monitor: str = "val/loss"
    """The metric of validation by which it is chosen and training stops: `val/loss`, `val/miou`,
    `val/accuracy`, or `val/NAME` of a further metric."""
    mode: Literal["min", "max"] = option("min", decides=False)
    """Whether a smaller (`min`) or a larger (`max`) value of `monitor` is better; the wrong one is
    refused."""

    def validate(self) -> None:
        """Refuse a mode by which the worst checkpoint would be kept."""
        if self.monitor not in VALIDATED:
            return  # torchmetrics knows the direction of its own
        require_mode(self, "max" if best_direction(self.monitor) == "maximize" else "min")


def require_mode(best: BestConfig, mode: str) -> None:
    """Refuse a mode by which the worst checkpoint would be kept.

    Args:
        best: Of the best checkpoint.
        mode: `min` or `max`, what `monitor` asks for.
    """
    if best.mode != mode:
        words = "higher" if mode == "max" else "lower"
        raise ConfigError(
            f"callbacks.best.mode={best.mode} would keep the worst checkpoint: {best.monitor} is "
            f"better the {words} it is; use callbacks.best.mode={mode}."
        )


@dataclass(frozen=True, kw_only=True)
class EarlyStoppingConfig(Group):
    """When training stops before its last epoch; null: never."""

    node: ClassVar[str] = "callbacks.early_stopping"

    patience: int = option(30, 0, 1_000_000)
    """Epochs without a better `callbacks.best.monitor` after which training stops; 0: never."""


@dataclass(frozen=True, kw_only=True)
class AverageConfig(Group):
    """An average of the weights over the training, which is validated, kept and tested."""

    node: ClassVar[str] = "callbacks.average"

    kind: Literal["none", "ema", "swa"] = "none"
    """`ema`: after each step, older weights fading exponentially; `swa`: after each epoch, all of
    them alike (Izmailov et al., 2018)."""
    decay: float = option(0.999, 0.0, 1.0, decides=if_averaged_exponentially)
    """For `ema`: the share of the average that each step keeps; the rest comes from the step's
    weights."""
    start_epoch: int = option(1, 1, 1_000_000, decides=if_averaged)
    """The first epoch (from 1) whose weights are averaged; until then the weights themselves are
    validated and kept."""


@dataclass(frozen=True, kw_only=True)
class ResumeConfig(Group):
    """The checkpoints from which an interrupted run resumes."""

    node: ClassVar[str] = "callbacks.resume"
    decides: ClassVar[Decides] = False

    save_minutes: float = option(10.0, 0.0, 1e6)
    """Minutes between two checkpoints within an epoch, beside the one at its end; 0: none
    within."""


@dataclass(frozen=True, kw_only=True)
class ProgressConfig(Group):
    """What is shown of a training."""

    node: ClassVar[str] = "callbacks.progress"
    decides: ClassVar[Decides] = False

    bars: Literal["auto", "always", "never"] = "auto"
    """When progress bars are shown; `auto`: on a terminal, and elsewhere one line every half
    minute. Each epoch has a line of its own in any case."""


@dataclass(frozen=True, kw_only=True)
class PanelConfig(Group):
    """The figure of test images, truths and predictions."""

    node: ClassVar[str] = "callbacks.panel"
    decides: ClassVar[Decides] = False

    patches: int = option(6, 0, 64)
    """How many test patches the figure shows."""


@dataclass(frozen=True, kw_only=True)
class CallbacksConfig(OpenGroup):
    """What accompanies a training, by name: ours, and callbacks of Lightning's or the user's."""

    node: ClassVar[str] = "callbacks"
    decides: ClassVar[Decides] = if_trained

    name: str = option("", chosen=True, decides=False)
    best: BestConfig = field(default_factory=BestConfig)
    early_stopping: EarlyStoppingConfig | None = field(default_factory=EarlyStoppingConfig)
    average: AverageConfig = field(default_factory=AverageConfig)
    resume: ResumeConfig = field(default_factory=ResumeConfig)
    progress: ProgressConfig = field(default_factory=ProgressConfig)
    panel: PanelConfig = field(default_factory=PanelConfig)
