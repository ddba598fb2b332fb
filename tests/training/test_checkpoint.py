"""Which checkpoints go with which config."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flair2_exp.config.model import FusionConfig, UTAEConfig
from flair2_exp.errors import CheckpointError
from flair2_exp.models.registry import NetworkSpec
from flair2_exp.training.checkpoint import (
    require_same_devices,
    require_same_model,
    require_training_state,
)
from tests.models.helpers import spec_of
from tests.training.helpers import build_task

MEAN, QUIRK = UTAEConfig(aggregation="mean"), UTAEConfig(normalise_padding=True)
FIRST = FusionConfig(collapsed="first_sample")


def _require(network: Any, wanted: NetworkSpec) -> None:
    content = {"state_dict": {}, "hyper_parameters": {"network": network}}
    require_same_model(Path("best.ckpt"), content, wanted)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("unet", {"encoder": "resnet18"}, "model.encoder: resnet18 -> resnet34"),
        ("unet", {"metadata": "channels"}, 'reads: ."aerial", "metadata". -> ."aerial".'),
        ("unet", {"options": {"width": 3}}, "model.options.width: 3 -> null"),
        ("unet", {"bands": 4}, "bands: 4 -> 5"),
        ("utae", {"utae": MEAN}, "utae.aggregation: mean -> att_group"),
        ("utt", {"utae": QUIRK}, "utae.normalise_padding: true -> false"),
        ("utt", {"fusion": FIRST}, "fusion.collapsed: first_sample -> each_sample"),
        ("utt", {"fusion": FusionConfig(terms="cropped")}, "fusion.terms: cropped -> both"),
        ("utt", {"series_size": 64}, "series_size: 64 -> 40"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused_with_the_difference(
    name: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"best.ckpt is of another network .*: {message}"):
        _require(spec_of(name, **changes).plain(), spec_of(name))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("unet", {"utae": QUIRK, "fusion": FIRST, "series_size": 64}),
        ("unet", {"encoder_weights": "imagenet", "weights": "a.ckpt", "channels_last": True}),
        ("utae", {"encoder": "resnet18", "bands": 3, "fusion": FIRST}),
        ("utt", {"utae": UTAEConfig(checkpointing=True), "compile": True}),
    ],
)
def test_options_of_parts_that_the_network_lacks_or_that_change_nothing_may_differ(
    name: str, changes: dict[str, Any]
) -> None:
    _require(spec_of(name, **changes).plain(), spec_of(name))


def test_without_metadata_how_they_join_may_differ() -> None:
    spec = spec_of("unet")
    other = replace(spec, metadata=replace(spec.metadata, fusion="rows", month="reference"))
    _require(other.plain(), spec)


def test_of_another_kind_of_network_only_the_kind_is_named() -> None:
    with pytest.raises(
        CheckpointError, match=r": model\._target_: \S+AerialSegmenter -> \S+UTT\.\n"
    ):
        _require(spec_of("unet", encoder="resnet18").plain(), spec_of("utt"))


def test_an_option_that_a_checkpoint_lacks_has_its_default() -> None:
    older = spec_of("utt").plain()
    del older["fusion"]["terms"]
    _require(older, spec_of("utt"))
    other = spec_of("utt", fusion=FusionConfig(terms="collapsed"))
    with pytest.raises(CheckpointError, match=r"fusion\.terms: both -> collapsed"):
        _require(older, other)


@pytest.mark.parametrize(
    "network", [{}, {"name": "unett"}, {"model": {}, "depth": 5}, {"model": None}, 3, "utae"]
)
def test_a_checkpoint_that_describes_no_network_is_refused(network: Any) -> None:
    if network == "utae":
        network = {**spec_of("utae").plain(), "utae": None}
    with pytest.raises(CheckpointError, match="describes no network"):
        _require(network, spec_of("utt"))


SCHEDULES = "flair2_exp.training.schedules"


def _training(
    optimizer: str = "AdamW", lr: float = 0.01, scheduler: str = "Constant"
) -> dict[str, Any]:
    """A task's hyper-parameters."""
    options = {"_target_": optimizer, "lr": lr, "weight_decay": 0.0, "options": {"eps": 1e-8}}
    return {"optimizer": options, "scheduler": {"_target_": f"{SCHEDULES}.{scheduler}"}}


def _trained(epochs: int) -> dict[str, Any]:
    progress = {"epoch_progress": {"current": {"processed": epochs}}}
    return {"hyper_parameters": _training(), "loops": {"fit_loop": progress}}


@pytest.mark.parametrize(
    ("wanted", "epochs", "message"),
    [
        (_training("SGD"), 9, "optimizer._target_: AdamW -> SGD"),
        (_training(lr=0.1), 9, "optimizer.lr: 0.01 -> 0.1"),
        (_training(scheduler="Plateau"), 9, "scheduler: LambdaLR -> ReduceLROnPlateau"),
        (_training(), 3, "has trained 3 epochs, trainer.max_epochs=3"),
    ],
)
def test_a_training_that_would_not_resume_as_configured_is_refused(
    wanted: dict[str, Any], epochs: int, message: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"best.ckpt .*{message}.*\n.*model.weights="):
        require_training_state(Path("best.ckpt"), _trained(3), wanted, epochs=epochs)


def test_a_training_resumes_with_more_epochs_and_another_course() -> None:
    for wanted in (_training(), _training(scheduler="Cosine")):
        require_training_state(Path("best.ckpt"), _trained(3), wanted, epochs=4)


def test_weights_alone_are_no_training_to_resume() -> None:
    content = {"hyper_parameters": _training()}
    with pytest.raises(CheckpointError, match=r"no training to resume \(no 'loops'\)"):
        require_training_state(Path("best.ckpt"), content, _training(), epochs=4)


def test_a_training_that_had_stopped_early_is_not_resumed() -> None:
    patience = {"stopped_epoch": 0}  # Lightning's word for not stopped
    content = _trained(3) | {"callbacks": {"Patience": patience, "Scores": {}}}
    require_training_state(Path("best.ckpt"), content, _training(), epochs=9)
    patience["stopped_epoch"] = 2
    with pytest.raises(CheckpointError, match=r"had stopped early.*\n.*model.weights="):
        require_training_state(Path("best.ckpt"), content, _training(), epochs=9)


def _divided(devices: int, *, within: bool) -> dict[str, Any]:
    progress = {"current": {"ready": 3}, "is_last_batch": not within}
    return {
        "epoch_sums": [{"patches": 3.0}] * devices,
        "loops": {"fit_loop": {"epoch_loop.batch_progress": progress}},
    }


@pytest.mark.parametrize(("before", "now"), [(1, 2), (2, 1), (4, 2)])
def test_another_number_of_devices_resumes_from_an_epochs_end_alone_and_says_so(
    before: int, now: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = Path("last.ckpt")
    for within in (True, False):
        require_same_devices(path, _divided(before, within=within), before)
    assert not caplog.records
    require_same_devices(path, _divided(before, within=False), now)
    assert f"resumes on {now}, exactly from its epoch's end" in caplog.text
    with pytest.raises(CheckpointError, match=rf"(?s)within an epoch.*devices={before}") as refusal:
        require_same_devices(path, _divided(before, within=True), now)
    assert len(str(refusal.value).splitlines()) == 2


def test_sums_of_an_epoch_as_earlier_versions_kept_them_are_taken() -> None:
    """They knew one process alone, and no list."""
    sums = {"loss": 3.0, "patches": 2.0}
    for kept in (sums, [sums]):
        task = build_task()
        task.on_load_checkpoint({"epoch_sums": kept})
        assert task._epoch.state() == sums  # which a checkpoint needs a trainer for
