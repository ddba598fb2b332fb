"""The encoder of a network, whose first weights may come from elsewhere: its stages, freezing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from flair2_exp.errors import ConfigError, first_line
from flair2_exp.registry import written


def encoder_of(network: nn.Module, option: str) -> nn.Module:
    """Return the module that a network names as its encoder (`encoder_name`, else `encoder`).

    Args:
        network: The network.
        option: The option that asks for it, for the message.

    Raises:
        ConfigError: There is none.
    """
    name = getattr(network, "encoder_name", "encoder")
    try:
        return network.get_submodule(name)
    except AttributeError:
        raise ConfigError(
            f"{option}: {written(type(network))} has no module {name}, as which its encoder counts."
            "\nOmit the option, or name the encoder: `encoder_name = ...` in the class."
        ) from None


def stages_of(encoder: nn.Module, image: Sequence[int]) -> dict[int, int]:
    """Return the stage of each parameter of an encoder that is trained, by the parameter's id.

    A parameter belongs to the first of the encoder's features, from the shallowest on, that depends
    on it; what none depends on belongs to the last.

    Args:
        encoder: It takes an image and returns a list of features, the shallowest first.
        image: Bands, height and width.

    Raises:
        ConfigError: It does something else.
    """
    parameters = [each for each in encoder.parameters() if each.requires_grad]
    like = parameters[0]
    training = {module: module.training for module in encoder.modules()}
    encoder.eval()  # of one image no batch's statistics are taken, and nothing is drawn
    try:
        with torch.enable_grad():
            features = encoder(torch.zeros(1, *image, device=like.device, dtype=like.dtype))
            stages = _by_dependence(features, parameters)
    except Exception as error:  # of whatever kind: it is a user's code, given what it may not take
        reason = first_line(error)
        raise ConfigError(
            f"optimizer.layer_decay: the stages of {written(type(encoder))} are not known: "
            f"{reason}\nExpected a list of features from an image; omit the option otherwise."
        ) from error
    finally:
        for module, mode in training.items():
            module.training = mode
    return stages


def _by_dependence(features: Sequence[Tensor], parameters: list[nn.Parameter]) -> dict[int, int]:
    stages: dict[int, int] = {}
    computed = [each for each in features if each.requires_grad]  # the first may be the image
    if not computed:
        raise ValueError("none of its features depends on its weights.")
    for stage, feature in enumerate(computed):
        left = [each for each in parameters if id(each) not in stages]
        if left:
            slopes = torch.autograd.grad(feature.sum(), left, retain_graph=True, allow_unused=True)
            stages |= {
                id(each): stage
                for each, slope in zip(left, slopes, strict=True)
                if slope is not None
            }
    return {id(each): stages.get(id(each), len(computed) - 1) for each in parameters}


class FrozenEncoder(Callback):
    """Keeps the encoder's weights as they are, and its norms in evaluation mode.

    Which epoch it is alone decides, so that a run that resumes has the same encoder frozen. For a
    part of the training the gradients are computed and dropped: processes that share a training
    have agreed on them beforehand.

    Args:
        epochs: For how many, from the first; -1: the whole training.
    """

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._frozen = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the encoder out of the optimizer where it is never trained.

        Raises:
            ConfigError: The network has none.
        """
        encoder = self._encoder(pl_module)
        if self._epochs < 0:
            encoder.requires_grad_(False)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the mode of the norms."""
        frozen = self._is_frozen(trainer)
        if frozen or self._frozen:
            for module in self._encoder(pl_module).modules():
                if hasattr(module, "running_mean"):
                    module.train(not frozen)
        self._frozen = frozen

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Drop the gradients; optimizers leave parameters without one alone."""
        if self._is_frozen(trainer):
            for each in self._encoder(pl_module).parameters():
                each.grad = None

    def _is_frozen(self, trainer: Trainer) -> bool:
        return self._epochs < 0 or trainer.current_epoch < self._epochs

    @staticmethod
    def _encoder(module: LightningModule) -> nn.Module:
        network = module.model
        assert isinstance(network, nn.Module)
        return encoder_of(network, "model.freeze_encoder")
