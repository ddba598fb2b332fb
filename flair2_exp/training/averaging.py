"""Weights averaged over the training: what is validated, kept as the best and tested."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim.swa_utils import get_ema_avg_fn

from flair2_exp.config.training import AverageConfig


class AveragedWeights(WeightAveraging):
    """Lightning's averaging of weights and buffers, exact where a run resumes.

    Checkpoints hold the average as the network's weights, and those that are trained beside it.
    Until the first weights count there is no average: Lightning's own would be the first weights
    of all, and with them would be validated.
    """

    def __init__(self, options: AverageConfig) -> None:
        fading: Any = get_ema_avg_fn  # without annotations
        self._every_step = options.kind == "ema"
        super().__init__(**({"avg_fn": fading(options.decay)} if self._every_step else {}))
        self._start_epoch = options.start_epoch
        self._due = False
        self._begun = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the copy that becomes the average, where and in the precision that training is."""
        if stage == "fit":
            # Lightning moves and converts the module only later; the copy would stay as it is.
            pl_module.to(trainer.strategy.root_device)
            trainer.precision_plugin.convert_module(pl_module)
        super().setup(trainer, pl_module, stage)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Return whether the step that has been made counts."""
        return step_idx is not None and self._due

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Add the weights of each step, or of each epoch's last, before that epoch's validation."""
        counts = trainer.current_epoch + 1 >= self._start_epoch
        self._due = counts and (self._every_step or trainer.is_last_batch)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._begun = self._begun or self._due

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the average be validated, where there is one of this training."""
        if self._is_validated(trainer):
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights that are trained back."""
        if self._is_validated(trainer):
            super().on_validation_epoch_end(trainer, pl_module)

    def _is_validated(self, trainer: Trainer) -> bool:
        # A validation after the training is of a checkpoint, which holds the average already.
        return self._begun and trainer.state.fn == TrainerFn.FITTING

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average as the network's weights."""
        if self._begun:
            super().on_train_end(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store both weights."""
        if self._begun:
            super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Resume with both weights; for a test, the average that was read stays."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self._begun = "current_model_state" in checkpoint
        if self._begun:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
