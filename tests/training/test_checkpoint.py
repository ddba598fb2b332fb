"""Which checkpoints go with which config."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flair2_exp.errors import CheckpointError
from flair2_exp.models.build import ModelSpec
from flair2_exp.models.fusion import FusionOptions
from flair2_exp.models.utae import UTAEOptions
from flair2_exp.training.checkpoint import require_same_model, require_training_state

MEAN, QUIRK = UTAEOptions(aggregation="mean"), UTAEOptions(normalise_padding=True)
FIRST = FusionOptions(collapsed="first_sample")


def _require(held: dict[str, Any], wanted: ModelSpec) -> None:
    content = {"state_dict": {}, "hyper_parameters": {"model": held}}
    require_same_model(Path("best.ckpt"), content, wanted.to_dict())


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("unet", {"encoder": "resnet18"}, "encoder is resnet18 "),
        ("unet", {"metadata": True}, "metadata is True "),
        ("utae", {"utae": MEAN}, "utae.aggregation is mean "),
        ("utt", {"utae": QUIRK}, "utae.normalise_padding is True "),
        ("utt", {"fusion": FIRST}, "fusion.collapsed is first_sample "),
        ("utt", {"fusion": FusionOptions(terms="cropped")}, "fusion.terms is cropped "),
    ],
)
def test_a_checkpoint_of_another_network_is_refused_with_the_difference(
    name: str, changes: dict[str, Any], told: str
) -> None:
    wanted = ModelSpec(name)
    with pytest.raises(CheckpointError, match=rf"best.ckpt is of another model: {told}\(wanted "):
        _require(replace(wanted, **changes).to_dict(), wanted)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("unet", {"utae": QUIRK, "fusion": FIRST, "series_size": 64}),
        ("unet", {"metadata_fusion": "rows"}),
        ("unet", {"encoder_weights": "imagenet"}),
        ("utae", {"encoder": "resnet18", "fusion": FIRST, "metadata_fusion": "rows"}),
        ("utt", {"utae": UTAEOptions(checkpointing=True)}),
    ],
)
def test_options_of_parts_that_the_network_lacks_or_that_change_nothing_may_differ(
    name: str, changes: dict[str, Any]
) -> None:
    wanted = ModelSpec(name)
    _require(replace(wanted, **changes).to_dict(), wanted)


def test_of_another_kind_of_network_only_the_kind_is_told() -> None:
    with pytest.raises(CheckpointError, match=r"model: name is unet \(wanted utt\)\.\n"):
        _require(ModelSpec("unet", encoder="resnet18").to_dict(), ModelSpec("utt"))


def test_a_checkpoint_from_before_an_option_was_made_has_its_default() -> None:
    older = ModelSpec("utt").to_dict()
    del older["fusion"]["terms"]
    _require(older, ModelSpec("utt"))
    other = ModelSpec("utt", fusion=FusionOptions(terms="collapsed"))
    with pytest.raises(CheckpointError, match="terms is both"):
        _require(older, other)


@pytest.mark.parametrize(
    "held", [{}, {"name": "unett"}, {"name": "utt", "depth": 5}, {"name": "utt", "utae": None}, 3]
)
def test_a_checkpoint_that_describes_no_known_model_is_refused(held: Any) -> None:
    with pytest.raises(CheckpointError, match="describes no model"):
        _require(held, ModelSpec("utt"))


def _training(
    optimizer: str = "AdamW", lr: float = 0.01, scheduler: str = "none"
) -> dict[str, Any]:
    """A task's hyper-parameters."""
    options = {"target": optimizer, "lr": lr, "weight_decay": 0.0, "options": {"eps": 1e-8}}
    return {"optimizer": options, "scheduler": {"name": scheduler, "warmup_epochs": 0}}


def _trained(epochs: int) -> dict[str, Any]:
    progress = {"epoch_progress": {"current": {"processed": epochs}}}
    return {"hyper_parameters": _training(), "loops": {"fit_loop": progress}}


@pytest.mark.parametrize(
    ("wanted", "epochs", "told"),
    [
        (_training("SGD"), 9, "optimizer.target is AdamW .wanted SGD."),
        (_training(lr=0.1), 9, "optimizer.lr is 0.01 .wanted 0.1."),
        (_training(scheduler="plateau"), 9, "scheduler.plateau is False .wanted True."),
        (_training(), 3, "has trained 3 epochs, trainer.max_epochs=3"),
    ],
)
def test_a_training_that_would_not_go_on_as_asked_is_refused(
    wanted: dict[str, Any], epochs: int, told: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"best.ckpt .*{told}.*\n.*model.weights="):
        require_training_state(Path("best.ckpt"), _trained(3), wanted, epochs=epochs)


def test_a_training_goes_on_with_more_epochs_and_another_course() -> None:
    for wanted in (_training(), _training(scheduler="cosine")):
        require_training_state(Path("best.ckpt"), _trained(3), wanted, epochs=4)


def test_weights_alone_are_no_training_to_go_on_from() -> None:
    content = {"hyper_parameters": _training()}
    with pytest.raises(CheckpointError, match=r"no training to go on from \(no 'loops'\)"):
        require_training_state(Path("best.ckpt"), content, _training(), epochs=4)


def test_a_training_that_had_stopped_early_is_not_gone_on_with() -> None:
    patience = {"stopped_epoch": 0}  # Lightning's word for not stopped
    content = _trained(3) | {"callbacks": {"Patience": patience, "Scores": {}}}
    require_training_state(Path("best.ckpt"), content, _training(), epochs=9)
    patience["stopped_epoch"] = 2
    with pytest.raises(CheckpointError, match=r"had stopped early.*\n.*model.weights="):
        require_training_state(Path("best.ckpt"), content, _training(), epochs=9)
