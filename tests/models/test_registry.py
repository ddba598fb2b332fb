"""The door for networks, with one that the package knows by its class and its config alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from flair2_exp.config.data import MetadataConfig
from flair2_exp.config.fields import plain
from flair2_exp.config.model import ModelConfig
from flair2_exp.config.training import LossConfig, MetricConfig, OptimizerConfig, SchedulerConfig
from flair2_exp.errors import ConfigError, FlairError
from flair2_exp.models.registry import NetworkSpec, SegmentationModel, build_network
from flair2_exp.training.checkpoint import read_checkpoint, require_same_model
from flair2_exp.training.task import SegmentationTask
from tests.models.helpers import spec_of


class Small(SegmentationModel):
    """Each pixel by itself; more where the metadata are there."""

    main_head = "aerial"

    def __init__(self, spec: NetworkSpec, *, pretrained: bool = True, width: int = 4) -> None:
        super().__init__()
        if width > 64:
            raise ValueError(f"width={width} is more than 64")
        self.layers = nn.Sequential(
            nn.Conv2d(spec.bands, width, 1), nn.ReLU(), nn.Conv2d(width, spec.classes, 1)
        )

    def forward(self, image: Tensor, metadata: Tensor | None = None) -> dict[str, Tensor]:
        return {"aerial": self.layers(image)}


class Demanding(Small):
    """Cannot do without metadata."""

    def forward(self, image: Tensor, metadata: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"aerial": self.layers(image)}


def _spec(kind: type = Small, **changes: Any) -> NetworkSpec:
    model = ModelConfig(
        name="small",
        _target_=f"{__name__}.{kind.__name__}",
        reads=changes.pop("reads", ("aerial", "metadata")),
        options=changes.pop("options", {"width": 8}),
    )
    return NetworkSpec(model=model, patch_size=20, **changes)


def _task(spec: NetworkSpec) -> SegmentationTask:
    losses, schedules = "flair2_exp.training.losses", "flair2_exp.training.schedules"
    return SegmentationTask(
        network=spec.plain(),
        loss=plain(LossConfig(name="cross_entropy", _target_=f"{losses}.CrossEntropy")),
        optimizer=plain(OptimizerConfig(lr=0.1)),
        scheduler=plain(SchedulerConfig(_target_=f"{schedules}.Constant")),
        metric=plain(MetricConfig()),
    )


def test_a_network_from_elsewhere_trains_and_is_rebuilt_from_its_checkpoint(tmp_path: Path) -> None:
    spec = _spec()
    task = _task(spec)
    before = task.model.state_dict()["layers.0.weight"].clone()
    patch = {
        "image": torch.rand(5, 20, 20),
        "label": torch.randint(0, 12, (20, 20)),
        "series": torch.rand(2, 10, 16, 16),  # of no use to this network, which is not given it
        "patch_id": "IMG_1",
    }
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(task, DataLoader([patch, patch], batch_size=2))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert not torch.equal(task.model.state_dict()["layers.0.weight"], before)

    loaded = SegmentationTask.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert isinstance(loaded.model, Small)
    for name, value in task.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value)
    content = read_checkpoint(tmp_path / "a.ckpt")
    require_same_model(tmp_path / "a.ckpt", content, spec)
    with pytest.raises(FlairError, match=r"model\.options\.width: 8 -> 16"):
        require_same_model(tmp_path / "a.ckpt", content, _spec(options={"width": 16}))


@pytest.mark.parametrize("name", ["unet", "utae", "utt"])
def test_the_packages_own_networks_come_through_the_same_door(name: str) -> None:
    spec = spec_of(name)
    with torch.device("meta"):
        network = build_network(spec, pretrained=False)
    assert f"{type(network).__module__}.{type(network).__name__}" == spec.model._target_


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (_spec(reads=("aerial", "satellite")), "forward of Small does not take days, padding"),
        (_spec(reads=("metadata",)), "the forward of Small demands image"),
        (_spec(Demanding), "metadata=off: the forward of Demanding demands metadata"),
        (_spec(Demanding, reads=("aerial",)), "forward of Demanding demands metadata"),
        (
            _spec(options={"widht": 3}),
            r"model\.options\.widht: Small \(.*line 26\) has no such option; did you mean width\?",
        ),
        (_spec(options={"width": 65}), "width=65 is more than 64"),
        (
            _spec(options={"width": "wide"}),
            r"model\.options\.width=wide: input should be a valid int",
        ),
    ],
    ids=str,
)
def test_a_network_that_does_not_go_with_its_config_is_refused_in_two_lines(
    spec: NetworkSpec, message: str
) -> None:
    with pytest.raises(FlairError, match=message) as refusal:
        build_network(spec)
    assert len(str(refusal.value).splitlines()) <= 2


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("flair2_exp.models.aerial.AerialUnet", "flair2_exp.models.aerial has no AerialUnet"),
        ("torch.nn.Module", "not such a class"),
        ("os.system", "not such a class"),
        ("", "not a dotted path"),
    ],
)
def test_what_is_not_a_network_is_refused_in_two_lines(target: str, message: str) -> None:
    spec = _spec()
    spec = replace(spec, model=replace(spec.model, _target_=target))
    with pytest.raises(ConfigError, match=rf"model\._target_={target}: {message}") as refusal:
        build_network(spec)
    assert str(refusal.value).splitlines()[1].endswith("torch.nn.modules.module.Module.")


def test_a_network_that_demands_metadata_is_built_with_them() -> None:
    spec = _spec(Demanding, metadata=MetadataConfig(enabled=True))
    assert isinstance(build_network(spec), Demanding)
    assert spec.arguments == ("image", "metadata")


def test_a_spec_survives_as_plain_values() -> None:
    for spec in (spec_of("utt", metadata="rows", classes=19), _spec()):
        values = spec.plain()
        assert isinstance(values["utae"]["encoder_widths"], list)
        assert NetworkSpec.of_plain(values) == spec


def test_nodes_that_hold_no_options_of_networks_are_refused() -> None:
    model = replace(_spec().model, nodes=("utae", "metadata"))
    with pytest.raises(ConfigError, match=r"metadata holds no options of networks.*utae, fusion"):
        NetworkSpec(model=model)
