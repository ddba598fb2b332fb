"""The encoder: its stages and their rates, and freezing it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flair2_exp.config.training import OptimizerConfig
from flair2_exp.errors import ConfigError
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.training.encoder import FrozenEncoder, encoder_of, stages_of
from flair2_exp.training.optimizers import build_optimizer, parameter_groups
from tests.configs import run
from tests.lifecycle.helpers import Killed, die_at_the_end_of, scores
from tests.training.helpers import build_task, loader, trainer

IMAGE = (5, 64, 64)


def _network(encoder: str = "resnet18") -> nn.Module:
    words = ("model=unet", "data=aerial_only", f"model.encoder={encoder}")
    return build_task(*words).model


@pytest.mark.parametrize(
    ("encoder", "stages"),
    [
        (
            "resnet18",
            {"conv1": 0, "bn1": 0, "layer1": 1, "layer2": 2, "layer3": 3, "layer4": 4},
        ),
        ("mit_b0", {f"{part}{n}": n - 1 for part in ("patch_embed", "block", "norm")
                    for n in (1, 2, 3, 4)}),
    ],
)  # fmt: skip
def test_a_parameter_belongs_to_the_first_feature_that_depends_on_it(
    encoder: str, stages: dict[str, int]
) -> None:
    module = encoder_of(_network(encoder), "")
    found = stages_of(module, IMAGE)
    assert module.training
    for name, parameter in module.named_parameters():
        part = name.removeprefix("model.").split(".")[0]
        assert found[id(parameter)] == stages[part], name


def _groups(**options: Any) -> tuple[nn.Module, list[Any]]:
    network = _network()
    config = OptimizerConfig(_target_="torch.optim.AdamW", lr=0.1, weight_decay=0.2, **options)
    groups = parameter_groups(network.parameters(), network, config, IMAGE)
    if isinstance(groups[0], nn.Parameter):
        return network, list(groups)
    return network, build_optimizer(groups, config).param_groups


def _settings(network: nn.Module, groups: list[Any]) -> dict[str, tuple[float, float]]:
    """Rate and weight decay of each parameter, by name."""
    names = {id(each): name for name, each in network.named_parameters()}
    found = {
        names[id(each)]: (group["lr"], group["weight_decay"])
        for group in groups
        for each in group["params"]
    }
    assert found.keys() == set(names.values())
    return found


def test_with_the_default_options_the_parameters_are_one_list_as_they_came() -> None:
    network, groups = _groups()
    assert [id(each) for each in groups] == [id(each) for each in network.parameters()]


def test_the_encoder_has_a_rate_of_its_own_and_the_rest_comes_first() -> None:
    network, groups = _groups(encoder_lr_factor=0.25)
    assert [group["lr"] for group in groups] == [0.1, 0.025]
    for name, (rate, decay) in _settings(network, groups).items():
        assert (rate, decay) == (0.025 if name.startswith("encoder.") else 0.1, 0.2)


def test_norms_and_biases_need_not_decay() -> None:
    network, groups = _groups(decay_norms=False)
    parameters = dict(network.named_parameters())
    for name, (rate, decay) in _settings(network, groups).items():
        assert (rate, decay) == (0.1, 0.2 if parameters[name].ndim > 1 else 0.0)


def test_rates_fall_by_stage_towards_the_image() -> None:
    network, groups = _groups(encoder_lr_factor=0.5, layer_decay=0.8, decay_norms=False)
    found = _settings(network, groups)
    for number in (1, 2, 3, 4):
        rate, _ = found[f"encoder.layer{number}.0.conv1.weight"]
        assert rate == pytest.approx(0.1 * 0.5 * 0.8 ** (4 - number))
    assert found["encoder.conv1.weight"] == (pytest.approx(0.1 * 0.5 * 0.8**4), 0.2)
    assert found["encoder.bn1.weight"] == (pytest.approx(0.1 * 0.5 * 0.8**4), 0.0)
    assert found["decoder.blocks.0.conv1.0.weight"] == (0.1, 0.2)


class Headless(nn.Module):
    encoder_name = "backbone"

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(1, 1)


def test_an_encoder_that_is_not_there_or_gives_no_features_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.freeze_encoder: Linear has no module enc"):
        encoder_of(nn.Linear(1, 1), "model.freeze_encoder")
    options = OptimizerConfig(_target_="torch.optim.SGD", lr=0.1, layer_decay=0.5)
    network = Headless()
    with pytest.raises(ConfigError, match=r"optimizer\.layer_decay: the stages of Linear .*\n"):
        parameter_groups(network.parameters(), network, options, IMAGE)


def _encoder_state(task: nn.Module) -> dict[str, Tensor]:
    state = task.state_dict()
    return {n: each.clone() for n, each in state.items() if n.startswith("model.encoder.")}


@pytest.mark.parametrize(("frozen", "epochs"), [(-1, 2), (2, 2), (1, 2)])
def test_a_frozen_encoder_stays_to_the_bit_its_statistics_too(frozen: int, epochs: int) -> None:
    task = build_task("model=unet", "data=aerial_only", "optimizer=adamw",
                      "optimizer.weight_decay=0.1", "trainer.gradient_clip_val=1")  # fmt: skip
    before, decoder = _encoder_state(task), task.model.decoder.blocks[0].conv1[0].weight.clone()
    trainer(FrozenEncoder(frozen), max_epochs=epochs).fit(task, loader())
    after = _encoder_state(task)
    same = [torch.equal(before[name], after[name]) for name in before]
    assert not torch.equal(decoder, task.model.decoder.blocks[0].conv1[0].weight)
    if frozen == 1:
        assert sum(same) < len(same) / 10
        assert all(module.training for module in task.model.encoder.modules())
    else:
        assert all(same)
    in_optimizer = {id(p) for g in task.optimizers().param_groups for p in g["params"]}
    holds = {id(each) for each in task.model.encoder.parameters()} <= in_optimizer
    assert holds == (frozen > 0)


@pytest.mark.slow
def test_a_run_with_a_frozen_encoder_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("model=unet", "data=aerial_only", "model.freeze_encoder=2", "trainer.max_epochs=3",
             "optimizer.layer_decay=0.5")  # fmt: skip
    whole = run(tmp_path, tmp_path / "whole", *words)
    with monkeypatch.context() as patch:
        die_at_the_end_of(0, patch)
        with pytest.raises(Killed):
            run(tmp_path, tmp_path / "killed", *words)
    assert scores(run(tmp_path, tmp_path / "killed", *words)) == scores(whole)
    states = torch.load(RunFolder(tmp_path / "killed").last, weights_only=True)
    assert len(states["optimizer_states"][0]["param_groups"]) > 3
