"""The one LightningModule: trains, validates and tests any network on the FLAIR #2 score.

Its stored hyper-parameters are plain numbers, strings and lists, so that its checkpoints load with
`weights_only=True` and an evaluation can rebuild the network from the file alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from flair2_exp.config.fields import build
from flair2_exp.config.relevance import scores_by_batches
from flair2_exp.config.training import LossConfig, MetricConfig, OptimizerConfig, SchedulerConfig
from flair2_exp.models.registry import HEADS, NetworkSpec, build_network, by_head, main_head
from flair2_exp.nomenclature import Nomenclature, flair
from flair2_exp.score import iou, miou
from flair2_exp.training.losses import build_loss
from flair2_exp.training.metrics import build_metrics, update
from flair2_exp.training.optimizers import build_optimizer, parameter_groups
from flair2_exp.training.schedules import build_schedule, rates_of
from flair2_exp.training.test_time import averaged, one_by_one

Batch = Mapping[str, Any]
_PLATEAU_STATE = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")
"""What changes in a plateau schedule; all plain numbers."""


@dataclass
class PatchResult:
    """What testing keeps of one patch."""

    area: str
    confusion: npt.NDArray[np.int32]


class EpochSums:
    """Sums over the patches of an epoch's batches, of which a checkpoint holds those so far.

    Lightning's own means over an epoch are in no checkpoint.
    """

    def __init__(self, state: Mapping[str, float] | None = None) -> None:
        self._sums = {name: torch.tensor(value) for name, value in (state or {}).items()}
        self._patches = int(self._sums.pop("patches", 0))

    def state(self) -> dict[str, float]:
        """Return the sums and `patches`, for a checkpoint."""
        sums = {name: float(value) for name, value in self._sums.items()}
        return sums | {"patches": float(self._patches)}

    def add(self, means: Mapping[str, Tensor], patches: int) -> None:
        """Add a batch.

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
        """Return the means over all patches so far."""
        return {name: value / self._patches for name, value in self._sums.items()}


class SegmentationTask(LightningModule):
    """Training, validation and test of one network.

    All arguments but the last are plain values, as `config.fields.plain` makes them.

    Args:
        network: `NetworkSpec.plain()`.
        loss: Of a `LossConfig`.
        optimizer: Of an `OptimizerConfig`.
        scheduler: Of a `SchedulerConfig`.
        metric: Of a `MetricConfig`.
        nomenclature: `Nomenclature.plain()` of the data; None is FLAIR #2's of as many classes.
        normalisation: Of a `data.normalisation.Normalisation`: by what the inputs of the training
            are normalised. The data module does it; it is kept here for whoever uses the network.
        inputs: Of a `data.inputs.Inputs`: what the inputs are before they are scaled. Likewise.
        symmetries: In which each test patch is predicted (`test_time.SYMMETRIES`).
        pretrained: False where a checkpoint will replace all weights: the encoder's are then
            neither read nor downloaded.

    Attributes:
        results: Patch id to `PatchResult`, filled by testing.

    Raises:
        ConfigError: Something that a `_target_` names does not exist.
        ModelError: The network cannot be built.
    """

    def __init__(
        self,
        network: Mapping[str, Any],
        loss: Mapping[str, Any],
        optimizer: Mapping[str, Any],
        scheduler: Mapping[str, Any],
        metric: Mapping[str, Any],
        nomenclature: Mapping[str, Any] | None = None,
        normalisation: Mapping[str, Any] | None = None,
        inputs: Mapping[str, Any] | None = None,
        symmetries: str = "none",
        pretrained: bool = True,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["pretrained", "symmetries"], logger=False)
        self.symmetries = symmetries
        spec = NetworkSpec.of_plain(network)
        self.spec = spec
        self.model = build_network(spec, pretrained)
        self.main_head = main_head(self.model, spec.reads)
        self.nomenclature = (
            flair(spec.classes) if nomenclature is None else Nomenclature.of_plain(nomenclature)
        )
        self.class_names = list(self.nomenclature.names)
        self.loss_options = build(LossConfig, loss)
        self.losses = nn.ModuleDict(
            {head: build_loss(self.loss_options, self.class_names, head) for head in HEADS}
        )
        self.optimizer_options = build(OptimizerConfig, optimizer)
        self.scheduler_options = build(SchedulerConfig, scheduler)
        metric_options = build(MetricConfig, metric)
        self.keep_other = metric_options.other_pixels == "keep" or not self.nomenclature.has_other
        # In plain dictionaries: a metric's state is not the network's, and in no checkpoint.
        self.metrics = {
            prefix: build_metrics(
                metric_options, spec.classes, has_other=self.nomenclature.has_other
            )
            for prefix in ("val/", "test/")
        }
        self.results: dict[str, PatchResult] = {}
        self._epoch = EpochSums()
        self._plateau: ReduceLROnPlateau | None = None
        self._plateau_state: dict[str, Any] = {}
        # Not a buffer: an average of the weights (`callbacks.average`) is one of the buffers, too.
        self.validation_confusion = torch.zeros(0)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return logits of each head, (B, C, H, W), of a batch already scaled.

        Args:
            batch: As `FlairDataModule` gives it; the network gets what it reads.
        """
        inputs = {name: batch[name] for name in self.spec.arguments if name in batch}
        return by_head(self.model, self.model(**inputs), self.spec, batch["label"].shape)

    def loss(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the loss of each head and their weighted sum, `total`."""
        targets = {"aerial": batch["label"], "satellite": batch.get("satellite_label")}
        parts = {head: self.losses[head](logits, targets[head]) for head, logits in outputs.items()}
        weights = {"aerial": self.loss_options.aerial, "satellite": self.loss_options.satellite}
        total = torch.stack([weights[head] * part for head, part in parts.items()]).sum()
        return {**parts, "total": total}

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        """Return what tests go by: logits of each head, (B, C, H, W), as `forward` does.

        In the symmetries of test-time augmentation, and on a processor patch by patch: a batch is
        no faster there, and rounding would depend on it. Where a quirk lets the batch itself into
        the results it stays whole.
        """
        by_itself = self.device.type == "cpu" and not scores_by_batches(self.spec)
        parts = list(one_by_one(batch)) if by_itself else [batch]
        outputs = [averaged(self, part, self.symmetries) for part in parts]
        return {head: torch.cat([each[head] for each in outputs]) for head in outputs[0]}

    def predict_classes(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """Return class indices (B, H, W) of the scored head."""
        return outputs[self.main_head].argmax(dim=1)

    def training_step(self, batch: Batch, batch_index: int) -> dict[str, Tensor]:
        """Train on a batch; the epoch logs `train/loss` and, of two heads, each head's.

        They are means over the patches of all processes.

        Returns:
            The `loss` to train on, and that of each head, for callbacks.
        """
        losses = self.loss(self(batch), batch)
        values = {"train/loss": losses["total"].detach()}
        if len(losses) > 2:
            values |= {f"train/loss_{head}": losses[head].detach() for head in HEADS}
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        values["train/lr"] = losses["total"].new_tensor(rate)
        self._epoch.add(values, len(batch["patch_id"]))
        if self.trainer.is_last_batch:
            means = self._epoch.means()
            self.log_dict(means, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)
        return {"loss": losses.pop("total"), **{n: each.detach() for n, each in losses.items()}}

    def on_train_epoch_start(self) -> None:
        """Forget the sums of the last epoch."""
        self._epoch = EpochSums()

    def on_validation_epoch_start(self) -> None:
        """Forget the counts of the last epoch."""
        size = len(self.class_names)
        self.validation_confusion = torch.zeros(size, size, dtype=torch.int64, device=self.device)
        self._reset_metrics("val/")

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Add a batch to the confusion matrix and the mean loss."""
        outputs = self(batch)
        losses = self.loss(outputs, batch)
        size = len(batch["patch_id"])
        self.log("val/loss", losses["total"], on_epoch=True, batch_size=size, sync_dist=True)
        prediction = self.predict_classes(outputs)
        self.validation_confusion += self.confusion(batch["label"], prediction).sum(0)
        self._update_metrics("val/", prediction, batch["label"])

    def on_validation_epoch_end(self) -> None:
        """Log `val/miou` and `val/accuracy` and the further metrics, over all processes."""
        summed = self.trainer.strategy.reduce(self.validation_confusion.clone(), reduce_op="sum")
        scores = _scores("val/", torch.as_tensor(summed).cpu().numpy(), self.nomenclature.scored)
        self.log_dict(scores, sync_dist=False)
        self._log_metrics("val/")

    def _reset_metrics(self, prefix: str) -> None:
        for metric in self.metrics[prefix].values():
            metric.to(self.device).reset()

    def _update_metrics(self, prefix: str, prediction: Tensor, truth: Tensor) -> None:
        """Update the further metrics with the pixels that count."""
        dropped = None if self.keep_other else len(self.class_names) - 1
        update(self.metrics[prefix], prediction, truth, dropped)

    def _log_metrics(self, prefix: str) -> None:
        """Log the further metrics; one that has no value (no pixel counted) is left out."""
        for name, metric in self.metrics[prefix].items():
            if metric.update_called or self.trainer.world_size > 1:
                value = float(metric.compute())
                if np.isfinite(value):
                    self.log(f"{prefix}{name}", value, sync_dist=False)

    def confusion(self, truth: Tensor, prediction: Tensor) -> Tensor:
        """Return confusion counts of each patch: (B, C, C) int64, rows truth.

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
        self._reset_metrics("test/")

    def test_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Keep each patch's counts; return the class indices (B, H, W) for callbacks.

        `test/loss` is the mean of the patches' own, so that it does not depend on the batches.
        """
        outputs = self.evaluate(batch)
        prediction = self.predict_classes(outputs)
        targets = {n: batch[n] for n in ("label", "satellite_label") if n in batch}
        size = len(batch["patch_id"])
        losses = [
            self.loss(*({n: each[[at]] for n, each in of.items()} for of in (outputs, targets)))
            for at in range(size)
        ]
        loss = torch.stack([each["total"] for each in losses]).mean()
        self.log("test/loss", loss, on_epoch=True, batch_size=size, sync_dist=True)
        self._update_metrics("test/", prediction, batch["label"])
        counts = self.confusion(batch["label"], prediction).to(torch.int32).cpu().numpy()
        for patch, area, confusion in zip(batch["patch_id"], batch["area"], counts, strict=True):
            self.results[patch] = PatchResult(area, confusion)
        return prediction

    def on_test_epoch_end(self) -> None:
        """Gather the patches of all processes and log `test/miou` and each class's IoU."""
        self._gather_results()
        scores = all_scores("test/", self.test_confusion(), self.nomenclature)
        self.log_dict(scores, sync_dist=False)
        self._log_metrics("test/")

    def _gather_results(self) -> None:
        """Gather by patch id: a distributed sampler repeats patches to fill up the last batch."""
        if not _in_a_group():
            return
        gathered: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, self.results)
        self.results = {patch: result for each in gathered for patch, result in each.items()}

    def test_confusion(self) -> npt.NDArray[np.int64]:
        """Return the summed confusion matrix of the tested patches, (C, C) int64."""
        count = len(self.class_names)
        total = np.zeros((count, count), dtype=np.int64)
        for result in self.results.values():
            total += result.confusion
        return total

    def configure_optimizers(self) -> Any:
        """Make the optimizer over what is trained, and its schedule."""
        size = self.spec.patch_size
        groups = parameter_groups(
            self.parameters(), self.model, self.optimizer_options, (self.spec.bands, size, size)
        )
        optimizer = build_optimizer(groups, self.optimizer_options)
        interval = self.scheduler_options.interval
        plan = self._plan()
        scheduler = build_schedule(optimizer, self.scheduler_options, **plan)
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.load_state_dict({**scheduler.state_dict(), **self._plateau_state})
            self._plateau = scheduler
            return optimizer
        course = {"scheduler": scheduler, "interval": interval}
        return {"optimizer": optimizer, "lr_scheduler": course}

    def _plan(self) -> dict[str, int]:
        """Return the epochs of this training, and in each the steps that its schedule counts."""
        epochs = self.trainer.max_epochs or 1
        if self.scheduler_options.interval == "epoch":
            return {"epochs": epochs, "steps_per_epoch": 1}
        steps = int(self.trainer.estimated_stepping_batches)
        return {"epochs": epochs, "steps_per_epoch": max(1, steps // epochs)}

    def on_train_start(self) -> None:
        """Follow the schedule of this training from its first epoch on.

        A checkpoint brings the rate to which its own training had come: where that ended earlier,
        the lowest.
        """
        for config in self.trainer.lr_scheduler_configs:
            schedule = config.scheduler
            if isinstance(schedule, LambdaLR):
                rates = rates_of(schedule, schedule.last_epoch)
                for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate

    def on_validation_end(self) -> None:
        """Step the plateau schedule.

        Not left to Lightning, which steps it after the epoch's checkpoint is written: a run that
        resumes from there would have missed a step.
        """
        if self._plateau is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self._plateau.step(float(self.trainer.callback_metrics["val/loss"]))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add this epoch's sums, what the schedule was made for, and the plateau's state."""
        checkpoint["epoch_sums"] = self._sums_of_all()
        checkpoint["plan"] = self._plan()
        if self._plateau is not None:
            state = self._plateau.state_dict()
            checkpoint["plateau"] = {key: state[key] for key in _PLATEAU_STATE}

    def _sums_of_all(self) -> list[dict[str, float]]:
        """Return this epoch's sums of each process of the training, in their order."""
        own = self._epoch.state()
        if not _in_a_group():
            return [own]
        sums: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(sums, own)
        return sums

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take this epoch's sums, and keep the plateau schedule's state for its making."""
        sums = checkpoint.get("epoch_sums", [])
        if isinstance(sums, Mapping):  # as versions wrote them that knew one process alone
            sums = [sums]
        rank = torch.distributed.get_rank() if _in_a_group() else 0
        # Of another number of devices only at an epoch's end: see `require_same_devices`.
        self._epoch = EpochSums(sums[rank] if rank < len(sums) else {})
        self._plateau_state = checkpoint.get("plateau", {})


def _in_a_group() -> bool:
    """Return whether several processes train together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def all_scores(
    prefix: str, counts: npt.NDArray[np.int64], nomenclature: Nomenclature
) -> dict[str, float]:
    """Return mIoU, accuracy and each class's IoU of a summed confusion matrix, by metric.

    A class absent from truth and prediction alike has no IoU: it is left out, rather than NaN.

    Args:
        prefix: Of the metrics' names, as `test/`.
        counts: (C, C) pixels, rows truth.
        nomenclature: The C classes.
    """
    per_class = zip(nomenclature.names, iou(counts), strict=True)
    scores = {f"{prefix}iou/{name}": float(value) for name, value in per_class}
    present = {name: value for name, value in scores.items() if not np.isnan(value)}
    return {**_scores(prefix, counts, nomenclature.scored), **present}


def _scores(prefix: str, counts: npt.NDArray[np.int64], scored: int) -> dict[str, float]:
    """Return mIoU and accuracy of a summed confusion matrix (C, C)."""
    total = counts.sum()
    return {
        # NaN (nothing scored: a debug run's only batch may hold "other" alone) would be no score.
        f"{prefix}miou": float(np.nan_to_num(miou(counts, scored))),
        f"{prefix}accuracy": float(np.trace(counts) / total) if total else 0.0,
    }
