"""Networks that keep the contract pass, and each way to break it is found."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flair2_exp.config.model import FusionConfig
from flair2_exp.errors import ModelError
from flair2_exp.models.check import Finding, check_network, require_sound, spec_of
from tests.commands import answer
from tests.models.helpers import SMALL, small_spec

SIZES: dict[str, Any] = {"bands": 4, "classes": 6, "patch_size": 20, "series_size": 16}


class Sound(nn.Module):
    """A map for each pixel, and of the series the mean over the real dates."""

    def __init__(self, bands: int, classes: int, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(bands, width, 1)
        self.series = nn.Linear(10, width)
        self.last = nn.Conv2d(width, classes, 1)

    def forward(self, image: Tensor, series: Tensor, days: Tensor, padding: Tensor) -> Tensor:
        real = (~padding).float()[:, :, None]
        mean = (series.mean(dim=(3, 4)) * real).sum(1) / real.sum(1)
        return self.finish(self.first(image) + self.series(mean)[:, :, None, None])

    def finish(self, features: Tensor) -> Tensor:
        logits: Tensor = self.last(features.relu())
        return logits


class Mixing(Sound):
    """Subtracts the mean of the batch, in evaluation too."""

    def finish(self, features: Tensor) -> Tensor:
        return super().finish(features - features.mean(0, keepdim=True))


class OfTheFirst(Sound):
    """Gives all samples the first one's context."""

    def finish(self, features: Tensor) -> Tensor:
        return super().finish(features + features[:1].mean(dim=(2, 3), keepdim=True))


class Random(Sound):
    """Drops out in evaluation, too."""

    def finish(self, features: Tensor) -> Tensor:
        return super().finish(nn.functional.dropout(features, 0.5, training=True))


class Small(Sound):
    """Returns half the size."""

    def finish(self, features: Tensor) -> Tensor:
        return super().finish(features)[:, :, ::2, ::2]


class NotANumber(Sound):
    """Finite forward, and the slope of a root at zero backward."""

    def finish(self, features: Tensor) -> Tensor:
        return super().finish(features) + (features.mean() * 0).sqrt()


class Overflowing(Sound):
    """Divides zero by zero."""

    def finish(self, features: Tensor) -> Tensor:
        return super().finish(features) * (features * 0).sum() / (features * 0).sum()


class Unused(Sound):
    """Has layers that nobody calls, one of them frozen."""

    def __init__(self, bands: int, classes: int) -> None:
        super().__init__(bands, classes)
        self.spare = nn.Linear(3, 3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)


class OfPadding(Sound):
    """Takes the mean over all dates, padding included."""

    def forward(self, image: Tensor, series: Tensor, days: Tensor, padding: Tensor) -> Tensor:
        mean = series.mean(dim=(1, 3, 4))
        return self.finish(self.first(image) + self.series(mean)[:, :, None, None])


class Forgetful(Sound):
    """Draws a constant that no checkpoint holds."""

    def __init__(self, bands: int, classes: int) -> None:
        super().__init__(bands, classes)
        self.shift = torch.rand(8, 1, 1)

    def finish(self, features: Tensor) -> Tensor:
        return super().finish(features + self.shift)


class Pickled(Sound):
    """Puts an object into its state."""

    def get_extra_state(self) -> object:
        return {"path": Path("x")}

    def set_extra_state(self, state: object) -> None:
        pass


class Cut(Sound):
    """Returns something that no gradient comes through."""

    def finish(self, features: Tensor) -> Tensor:
        return super().finish(features).detach()


class Crashing(Sound):
    """Has a bug of its own."""

    def finish(self, features: Tensor) -> Tensor:
        raise KeyError("layer3")


class AnyOption(Sound):
    """Takes an option that no checkpoint can hold."""

    def __init__(self, bands: int, classes: int, path: Any = None) -> None:
        super().__init__(bands, classes)


def check(kind: type[nn.Module], **options: Any) -> dict[str, Finding]:
    found = check_network(
        kind, reads=("aerial", "satellite"), options=options, compare=False, **SIZES
    )
    return {each.check: each for each in found}


def failed(found: dict[str, Finding]) -> list[str]:
    return [name for name, each in found.items() if each.outcome == "failed"]


def test_a_sound_network_passes_every_check() -> None:
    found = check(Sound, width=16)
    assert not failed(found)
    assert [n for n, each in found.items() if each.outcome == "passed"] == [
        "plain options", "builds", "forward and shapes", "gradients", "deterministic",
        "independent samples", "independent of padding", "checkpoint",
    ]  # fmt: skip
    assert "0.000358 M" in found["parameters"].text
    assert "6, 20, 20" in found["forward and shapes"].text
    require_sound(list(found.values()))


@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [
        (Mixing, "independent samples", "with the others of its batch"),
        (OfTheFirst, "independent samples", "with the others of its batch"),
        (Random, "deterministic", "evaluations of one patch differ"),
        (Small, "forward and shapes", r"shape \(1, 6, 10, 10\) for the aerial head"),
        (NotANumber, "gradients", "NaN or infinite gradients in a batch of 1: first.weight"),
        (Overflowing, "forward and shapes", "the aerial logits hold NaN"),
        (OfPadding, "independent of padding", "5 more padded dates change the logits"),
        (Forgetful, "checkpoint", "rebuilt from its checkpoint, its logits differ"),
        (Pickled, "checkpoint", "hold more than tensors and plain values"),
        (Cut, "gradients", "no parameter gets a gradient"),
        (Crashing, "forward and shapes", rf"KeyError: 'layer3' \({__file__}, line \d+\)"),
    ],
)
def test_a_broken_network_fails_the_check_of_that_and_no_other(
    kind: type[nn.Module], name: str, text: str
) -> None:
    found = check(kind)
    assert failed(found) == [name]
    with pytest.raises(ModelError, match=rf"{name}: .*{text}"):
        require_sound(list(found.values()))
    assert found[name].fix


def test_an_option_that_no_checkpoint_can_hold_is_found() -> None:
    found = check(AnyOption, path=Path("x"))
    assert "network.model.options.path is a PosixPath" in found["plain options"].text
    assert "plain options" in failed(found)


def test_parameters_that_nothing_uses_are_listed_and_frozen_ones_are_not() -> None:
    found = check(Unused)
    assert not failed(found)
    note = found["without gradient"]
    assert note.outcome == "note"
    assert note.text == "2 parameters are never used: spare.weight, spare.bias."


def test_a_network_that_cannot_be_built_says_why() -> None:
    found = check(Sound, width="wide")
    assert failed(found) == ["builds"]
    assert "model.options.width=wide" in found["builds"].text
    assert list(found)[-1] == "builds"


def test_the_random_numbers_of_the_caller_are_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    check(Sound)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_other_precisions_are_tried_too(precision: str) -> None:
    spec = spec_of(Sound, reads=("aerial", "satellite"), **SIZES)
    found = {each.check: each for each in check_network(spec, precision=precision, compare=False)}
    wanted = "passed" if precision != "bf16-true" else "failed"  # it makes float32 of a mask
    assert found[f"precision {precision}"].outcome == wanted


# Our own networks.


@pytest.mark.parametrize("name", ["unet", "utae", "utt"])
def test_our_networks_pass(name: str) -> None:
    spec = small_spec(name, metadata=None if name == "utae" else "channels", series_size=16)
    found = check_network(spec, compare=False)
    require_sound(found)
    assert "without gradient" not in {each.check for each in found}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"fusion": FusionConfig(collapsed="first_sample")}, "independent samples"),
        (
            {"fusion": FusionConfig(dropout="always_batch", dropout_rate=0.5)},
            "deterministic",
        ),
        ({"utae": "normalise_padding"}, "independent of padding"),
    ],
)
def test_quirks_of_the_published_code_are_found(changes: dict[str, Any], name: str) -> None:
    if changes.get("utae"):
        changes = {"utae": dataclasses.replace(SMALL, normalise_padding=True)}
    found = check_network(small_spec("utt", series_size=16, **changes), compare=False)
    assert [each.check for each in found if each.outcome == "failed"] == [name]


@pytest.mark.slow
def test_the_command_prints_a_table_beside_utt_and_its_status_says_whether_all_is_well(
    tmp_path: Path,
) -> None:
    line = ("check-model", "preset=tiny", "dataset.sample.patch_size=64", "s2_preproc.size=16")
    good = answer(*line, "model=unet")
    assert good.status == 0, good.err
    assert "U-T&T 27.3" in good.out
    file = tmp_path / "conf" / "model" / "mixing.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(
        f"name: mixing\n_target_: {__name__}.Mixing\nreads: [aerial, satellite]\n"
        "encoder_weights: null\n"
    )
    own = ("--config-dir", str(tmp_path / "conf"), "model=mixing", "--no-compare")
    bad = answer(*line, *own)
    assert bad.status == 1
    assert "failed" in bad.out
    assert '"outcome": "failed"' in answer(*line, *own, "--json").out
    told = answer("check-model", "model=unett")
    assert (told.status, told.out) == (1, "")
