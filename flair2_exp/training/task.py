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
from flair2_exp.config.training import LossConfig, MetricConfig, OptimizerConfig, SchedulerConfig
from flair2_exp.models.registry import HEADS, NetworkSpec, build_network, by_head, main_head
from flair2_exp.nomenclature import classes
from flair2_exp.score import iou, miou
from flair2_exp.training.losses import build_loss
from flair2_exp.training.optimizers import build_optimizer
from flair2_exp.training.schedules import build_schedule, rates_of

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

    Args:
        state: What `state` returned, of a checkpoint.
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
        normalisation: Of a `data.normalisation.Normalisation`: by what the inputs of the training
            are normalised. The data module does it; it is kept here for whoever uses the network.
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
        normalisation: Mapping[str, Any] | None = None,
        pretrained: bool = True,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["pretrained"], logger=False)
        spec = NetworkSpec.of_plain(network)
        self.spec = spec
        self.model = build_network(spec, pretrained)
        self.main_head = main_head(self.model, spec.reads)
        self.class_names = [each.name for each in classes(spec.classes)]
        self.loss_options = build(LossConfig, loss)
        self.losses = nn.ModuleDict(
            {head: build_loss(self.loss_options, self.class_names, head) for head in HEADS}
        )
        self.optimizer_options = build(OptimizerConfig, optimizer)
        self.scheduler_options = build(SchedulerConfig, scheduler)
        self.keep_other = build(MetricConfig, metric).other_pixels == "keep"
        self.results: dict[str, PatchResult] = {}
        self._epoch = EpochSums()
        self._plateau: ReduceLROnPlateau | None = None
        self._plateau_state: dict[str, Any] = {}
        size = len(self.class_names)
        confusion = torch.zeros(size, size, dtype=torch.int64)
        self.register_buffer("validation_confusion", confusion, persistent=False)
        self.validation_confusion: Tensor

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
        self.validation_confusion.zero_()

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Add a batch to the confusion matrix and the mean loss."""
        outputs = self(batch)
        losses = self.loss(outputs, batch)
        size = len(batch["patch_id"])
        self.log("val/loss", losses["total"], on_epoch=True, batch_size=size, sync_dist=True)
        self.validation_confusion += self.confusion(
            batch["label"], self.predict_classes(outputs)
        ).sum(0)

    def on_validation_epoch_end(self) -> None:
        """Log `val/miou` and `val/accuracy` of the summed matrix, over all processes."""
        summed = self.trainer.strategy.reduce(self.validation_confusion.clone(), reduce_op="sum")
        self.log_dict(_scores("val/", torch.as_tensor(summed).cpu().numpy()), sync_dist=False)

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

    def test_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Keep each patch's counts; return the class indices (B, H, W) for callbacks.

        `test/loss` is the mean of the patches' own, so that it does not depend on the batches.
        """
        outputs = self(batch)
        prediction = self.predict_classes(outputs)
        targets = {n: batch[n] for n in ("label", "satellite_label") if n in batch}
        size = len(batch["patch_id"])
        losses = [
            self.loss(*({n: each[[at]] for n, each in of.items()} for of in (outputs, targets)))
            for at in range(size)
        ]
        loss = torch.stack([each["total"] for each in losses]).mean()
        self.log("test/loss", loss, on_epoch=True, batch_size=size, sync_dist=True)
        counts = self.confusion(batch["label"], prediction).to(torch.int32).cpu().numpy()
        for patch, area, confusion in zip(batch["patch_id"], batch["area"], counts, strict=True):
            self.results[patch] = PatchResult(area, confusion)
        return prediction

    def on_test_epoch_end(self) -> None:
        """Gather the patches of all processes and log `test/miou` and each class's IoU."""
        self._gather_results()
        counts = self.test_confusion()
        per_class = zip(self.class_names, iou(counts), strict=True)
        scores = {f"test/iou/{name}": value for name, value in per_class}
        # A class absent from truth and prediction alike has no IoU: not logged, rather than NaN.
        present = {name: float(value) for name, value in scores.items() if not np.isnan(value)}
        self.log_dict({**_scores("test/", counts), **present}, sync_dist=False)

    def _gather_results(self) -> None:
        """Gather by patch id: a distributed sampler repeats patches to fill up the last batch."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
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
        parameters = [each for each in self.parameters() if each.requires_grad]
        optimizer = build_optimizer(parameters, self.optimizer_options)
        epochs = self.trainer.max_epochs or 1
        scheduler = build_schedule(optimizer, self.scheduler_options, epochs)
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.load_state_dict({**scheduler.state_dict(), **self._plateau_state})
            self._plateau = scheduler
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

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
        """Add this epoch's sums and the plateau schedule's state."""
        checkpoint["epoch_sums"] = self._epoch.state()
        if self._plateau is not None:
            state = self._plateau.state_dict()
            checkpoint["plateau"] = {key: state[key] for key in _PLATEAU_STATE}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take this epoch's sums, and keep the plateau schedule's state for its making."""
        self._epoch = EpochSums(checkpoint.get("epoch_sums", {}))
        self._plateau_state = checkpoint.get("plateau", {})


def _scores(prefix: str, counts: npt.NDArray[np.int64]) -> dict[str, float]:
    """Return mIoU and accuracy of a summed confusion matrix (C, C)."""
    total = counts.sum()
    return {
        # NaN (nothing scored: a debug run's only batch may hold "other" alone) would be no score.
        f"{prefix}miou": float(np.nan_to_num(miou(counts))),
        f"{prefix}accuracy": float(np.trace(counts) / total) if total else 0.0,
    }
