"""The one LightningModule: trains, validates and tests any of the models on the FLAIR #2 score.

Its stored hyper-parameters are plain numbers, strings and lists, so that its checkpoints load with
`weights_only=True` and an evaluation can rebuild the network from the file alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from flair2_exp.models.build import ModelSpec, build_model
from flair2_exp.nomenclature import classes
from flair2_exp.score import iou, miou
from flair2_exp.training.losses import PLOWED_LAND, PixelLoss, class_weights
from flair2_exp.training.optimization import (
    OptimizerOptions,
    SchedulerOptions,
    build_optimizer,
    build_scheduler,
)

Batch = Mapping[str, Any]

_PLATEAU_STATE = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")
"""What changes in a plateau schedule; all plain numbers."""


@dataclass(frozen=True)
class LossOptions:
    """The loss of both heads; see `losses.PixelLoss`."""

    aerial: float = 1.0
    satellite: float = 1.0
    class_weights: Mapping[str, float] = field(default_factory=lambda: {"other": 0.0})
    satellite_ignores_plowed_land: bool = False
    """Quirk `loss.satellite_class_weights=reference`: plowed land weighs 0 in that head."""
    label_smoothing: float = 0.0
    gamma: float = 0.0
    dice: bool = False


@dataclass
class PatchResult:
    """What testing keeps of one patch."""

    area: str
    confusion: npt.NDArray[np.int32]


class EpochSums:
    """Sums over the patches of an epoch's batches, of which a checkpoint holds those so far.

    Lightning's own means over an epoch are in no checkpoint.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._patches = 0

    @classmethod
    def of(cls, state: Mapping[str, float]) -> EpochSums:
        """The sums that a checkpoint holds."""
        made = cls()
        made._sums = {name: torch.tensor(value) for name, value in state.items()}
        made._patches = int(made._sums.pop("patches", 0))
        return made

    def state(self) -> dict[str, float]:
        """The sums and `patches`, for a checkpoint."""
        return {name: float(value) for name, value in self._sums.items()} | {
            "patches": float(self._patches)
        }

    def add(self, means: Mapping[str, Tensor], patches: int) -> None:
        """Adds a batch.

        Args:
            means: Scalars by name, each a mean over the batch.
            patches: Of the batch.
        """
        for name, value in means.items():
            before = self._sums.get(name)
            added = value * patches
            self._sums[name] = added if before is None else before.to(value.device) + added
        self._patches += patches

    def means(self) -> dict[str, Tensor]:
        """The means over all patches so far."""
        return {name: value / self._patches for name, value in self._sums.items()}


class SegmentationTask(LightningModule):
    """Training, validation and test of one model.

    Args:
        model: `ModelSpec.to_dict()`.
        loss: Fields of `LossOptions`.
        optimizer: Fields of `OptimizerOptions`.
        scheduler: Fields of `SchedulerOptions`.
        keep_other: Whether pixels whose truth is "other" stay in the confusion matrix (quirk
            `metric.other_pixels=keep`).
        pretrained: False where a checkpoint will replace all weights: the encoder's are then
            neither read nor downloaded.

    Attributes:
        results: Patch id to `PatchResult`, filled by testing.
    """

    def __init__(
        self,
        model: Mapping[str, Any],
        loss: Mapping[str, Any],
        optimizer: Mapping[str, Any],
        scheduler: Mapping[str, Any],
        keep_other: bool = False,
        pretrained: bool = True,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["pretrained"], logger=False)
        spec = ModelSpec.from_dict(model)
        self.model = build_model(spec, pretrained=pretrained)
        self.class_names = [each.name for each in classes(spec.classes)]
        self.loss_options = LossOptions(**loss)
        self.losses = nn.ModuleDict(
            {head: self._head_loss(head) for head in ("aerial", "satellite")}
        )
        self.optimizer_options = OptimizerOptions(**optimizer)
        self.scheduler_options = SchedulerOptions(**scheduler)
        self.keep_other = keep_other
        self.results: dict[str, PatchResult] = {}
        self._epoch = EpochSums()
        self._plateau: ReduceLROnPlateau | None = None
        self._plateau_state: dict[str, Any] = {}
        self.register_buffer("validation_confusion", self._empty_confusion(), persistent=False)
        self.validation_confusion: Tensor

    def _head_loss(self, head: str) -> PixelLoss:
        options = self.loss_options
        plowed = head == "satellite" and options.satellite_ignores_plowed_land
        return PixelLoss(
            class_weights(
                self.class_names, options.class_weights, without=[PLOWED_LAND] if plowed else []
            ),
            label_smoothing=options.label_smoothing,
            gamma=options.gamma,
            dice=options.dice,
        )

    def _empty_confusion(self) -> Tensor:
        count = len(self.class_names)
        return torch.zeros(count, count, dtype=torch.int64)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits of each head, (B, C, H, W), of a batch already scaled (see `FlairDataModule`)."""
        outputs: dict[str, Tensor] = self.model(
            image=batch.get("image"),
            series=batch.get("series"),
            days=batch.get("days"),
            padding=batch.get("padding"),
            metadata=batch.get("metadata"),
        )
        return outputs

    def loss(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The loss of each head and their weighted sum, `total`."""
        targets = {"aerial": batch["label"], "satellite": batch.get("satellite_label")}
        parts = {head: self.losses[head](logits, targets[head]) for head, logits in outputs.items()}
        weights = {"aerial": self.loss_options.aerial, "satellite": self.loss_options.satellite}
        total = torch.stack([weights[head] * part for head, part in parts.items()]).sum()
        return {**parts, "total": total}

    def predict_classes(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """Class indices (B, H, W) of the scored head."""
        return outputs[self.model.main_head].argmax(dim=1)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """One step; the epoch logs `train/loss` and, where there are two heads, each head's.

        They are means over the patches of all processes.
        """
        losses = self.loss(self(batch), batch)
        seen = {"train/loss": losses["total"].detach()}
        if len(losses) > 2:
            seen |= {f"train/loss_{h}": losses[h].detach() for h in ("aerial", "satellite")}
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        seen["train/lr"] = losses["total"].new_tensor(rate)
        self._epoch.add(seen, len(batch["patch_id"]))
        if self.trainer.is_last_batch:
            means = self._epoch.means()
            self.log_dict(means, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)
        return losses["total"]

    def on_train_epoch_start(self) -> None:
        """Forget the sums of the last epoch."""
        self._epoch = EpochSums()

    def on_validation_epoch_start(self) -> None:
        """Forget the counts of the last epoch."""
        self.validation_confusion.zero_()

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Adds a batch to the confusion matrix and the mean loss."""
        outputs = self(batch)
        losses = self.loss(outputs, batch)
        size = len(batch["patch_id"])
        self.log("val/loss", losses["total"], on_epoch=True, batch_size=size, sync_dist=True)
        self.validation_confusion += self.confusion(
            batch["label"], self.predict_classes(outputs)
        ).sum(0)

    def on_validation_epoch_end(self) -> None:
        """Logs `val/miou` and `val/accuracy` of the summed matrix, over all processes."""
        summed = self.trainer.strategy.reduce(self.validation_confusion.clone(), reduce_op="sum")
        counts = torch.as_tensor(summed).cpu().numpy()
        total = counts.sum()
        # NaN (nothing scored: a debug run's only batch may hold "other" alone) would be no score.
        score = float(np.nan_to_num(miou(counts)))
        accuracy = float(np.trace(counts) / total) if total else 0.0
        self.log_dict({"val/miou": score, "val/accuracy": accuracy}, sync_dist=False)

    def confusion(self, truth: Tensor, prediction: Tensor) -> Tensor:
        """Confusion counts of each patch: (B, C, C) int64, rows truth.

        Args:
            truth: (B, H, W) int64.
            prediction: (B, H, W) int64.
        """
        count = len(self.class_names)
        patches = torch.arange(len(truth), device=truth.device)[:, None, None]
        pair = (patches * count + truth) * count + prediction
        counts = torch.bincount(pair.flatten(), minlength=len(truth) * count * count)
        counts = counts.reshape(len(truth), count, count)
        if not self.keep_other:
            counts[:, count - 1] = 0
        return counts

    def on_test_epoch_start(self) -> None:
        """Forget the patches of an earlier test."""
        self.results.clear()

    def test_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Keeps each patch's counts; returns the class indices (B, H, W) for callbacks."""
        outputs = self(batch)
        prediction = self.predict_classes(outputs)
        loss = self.loss(outputs, batch)["total"]
        size = len(batch["patch_id"])
        self.log("test/loss", loss, on_epoch=True, batch_size=size, sync_dist=True)
        counts = self.confusion(batch["label"], prediction).to(torch.int32).cpu().numpy()
        for patch, area, confusion in zip(batch["patch_id"], batch["area"], counts, strict=True):
            self.results[patch] = PatchResult(area, confusion)
        return prediction

    def on_test_epoch_end(self) -> None:
        """Gathers the patches of all processes and logs `test/miou` and each class's IoU."""
        self._gather_results()
        counts = self.test_confusion()
        per_class = iou(counts)
        scores = {f"test/iou/{n}": v for n, v in zip(self.class_names, per_class, strict=True)}
        # A class absent from truth and prediction alike has no IoU: not logged, rather than NaN.
        known = {name: float(value) for name, value in scores.items() if not np.isnan(value)}
        total = counts.sum()
        accuracy = float(np.trace(counts) / total) if total else 0.0
        score = float(np.nan_to_num(miou(counts)))
        self.log_dict({"test/miou": score, "test/accuracy": accuracy, **known}, sync_dist=False)

    def _gather_results(self) -> None:
        """By patch id: a distributed sampler repeats patches to fill up the last batch."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return
        gathered: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, self.results)
        self.results = {patch: result for each in gathered for patch, result in each.items()}

    def test_confusion(self) -> npt.NDArray[np.int64]:
        """The summed confusion matrix of the tested patches, (C, C) int64."""
        count = len(self.class_names)
        total = np.zeros((count, count), dtype=np.int64)
        for result in self.results.values():
            total += result.confusion
        return total

    def configure_optimizers(self) -> Any:
        """The optimizer over what is trained, and its schedule."""
        parameters = [each for each in self.parameters() if each.requires_grad]
        optimizer = build_optimizer(parameters, self.optimizer_options)
        scheduler = build_scheduler(
            optimizer, self.scheduler_options, epochs=self.trainer.max_epochs or 1
        )
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.load_state_dict({**scheduler.state_dict(), **self._plateau_state})
            self._plateau = scheduler
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def on_validation_end(self) -> None:
        """Steps the plateau schedule.

        Not left to Lightning, which steps it after the epoch's checkpoint is written: a run that
        goes on from there would have missed a step.
        """
        if self._plateau is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self._plateau.step(float(self.trainer.callback_metrics["val/loss"]))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds this epoch's sums and the plateau schedule's state."""
        checkpoint["epoch_sums"] = self._epoch.state()
        if self._plateau is not None:
            state = self._plateau.state_dict()
            checkpoint["plateau"] = {key: state[key] for key in _PLATEAU_STATE}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes this epoch's sums, and the plateau schedule's state until the optimizer is made."""
        self._epoch = EpochSums.of(checkpoint.get("epoch_sums", {}))
        self._plateau_state = checkpoint.get("plateau", {})


def plain(options: Any) -> dict[str, Any]:
    """A dataclass of options as plain values, for a checkpoint."""
    return {key: _plain(value) for key, value in asdict(options).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(each) for each in value]
    return value
