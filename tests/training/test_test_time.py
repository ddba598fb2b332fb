"""Test-time augmentation: exact symmetries, and means that NumPy computes alike."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from torch import Tensor

from flair2_exp.config.experiment import Config
from flair2_exp.config.fields import build, plain
from flair2_exp.config.identity import identity
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.training.checkpoint import read_checkpoint
from flair2_exp.training.task import SegmentationTask
from flair2_exp.training.test_time import SYMMETRIES, averaged
from tests.configs import compose_config, run
from tests.training.helpers import Patches, build_task, loader, trainer

D4 = SYMMETRIES["d4"]
IMAGES = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 6)).map(lambda each: (each[0], each[1], each[1])),
    elements=st.floats(-10, 10, width=32),
)


def moved(values: NDArray[Any], turns: int, mirrored: bool) -> NDArray[Any]:
    """A square's symmetry by NumPy's own names."""
    flipped = np.flip(values, -1) if mirrored else values
    return np.rot90(flipped, turns, (-2, -1))


@given(IMAGES, st.sampled_from(D4))
def test_every_symmetry_is_undone_bit_by_bit(image: NDArray[Any], symmetry: Any) -> None:
    applied = symmetry.applied(torch.from_numpy(image))
    np.testing.assert_array_equal(applied, moved(image, symmetry.turns, symmetry.mirrored))
    np.testing.assert_array_equal(symmetry.undone(applied), image)


@pytest.mark.parametrize(("word", "count"), [("none", 1), ("flips", 4), ("d4", 8)])
def test_the_symmetries_of_a_word_are_a_group_without_repetition(word: str, count: int) -> None:
    square = torch.arange(9).reshape(3, 3)
    images = {tuple(each.applied(square).flatten().tolist()) for each in SYMMETRIES[word]}
    twice = {
        tuple(second.applied(first.applied(square)).flatten().tolist())
        for first in SYMMETRIES[word]
        for second in SYMMETRIES[word]
    }
    assert len(images) == count
    assert twice == images


def pointwise(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """A network that looks at each pixel alone, so that it commutes with every symmetry."""
    red, green = batch["image"][:, 0], batch["image"][:, 1]
    return {"aerial": torch.stack([red, 2 * green - red, red * green], dim=1)}


@pytest.mark.parametrize("word", ["flips", "d4"])
def test_a_network_that_commutes_with_the_symmetries_is_left_as_it_is(word: str) -> None:
    batch = {"image": torch.randn(2, 2, 5, 5, generator=torch.Generator().manual_seed(1))}
    once = pointwise(batch)["aerial"].softmax(dim=1)
    mean = averaged(pointwise, batch, word)["aerial"].softmax(dim=1)
    torch.testing.assert_close(mean, once, rtol=0, atol=1e-6)


def by_numpy(task: SegmentationTask, batch: Mapping[str, Tensor], head: str) -> NDArray[Any]:
    """The mean probabilities of the eight symmetries, turned by NumPy."""
    total: Any = 0.0
    for turns in range(4):
        for mirrored in (False, True):
            turned = {
                name: torch.from_numpy(moved(batch[name].numpy(), turns, mirrored).copy())
                for name in ("image", "series")
                if name in batch
            }
            with torch.inference_mode():
                logits = task({**batch, **turned})[head].double().numpy()
            shares = np.exp(logits - logits.max(axis=1, keepdims=True))
            shares /= shares.sum(axis=1, keepdims=True)
            back = np.rot90(shares, -turns, (-2, -1))
            total = total + (np.flip(back, -1) if mirrored else back)
    return np.asarray(total / 8)


@pytest.mark.parametrize("model", ["unet", "utt"])
def test_the_mean_is_that_of_an_independent_implementation(model: str) -> None:
    task = build_task(f"model={model}", "test_time=d4").eval()
    patch = Patches(2)[0]  # of two dates, so that its series has padding
    batch = {
        name: each[None] if isinstance(each, Tensor) else [each] for name, each in patch.items()
    }
    tensors = {name: each for name, each in batch.items() if isinstance(each, Tensor)}
    tensors = {n: each for n, each in tensors.items() if n in (*task.spec.arguments, "label")}
    with torch.inference_mode():
        found = task.evaluate(tensors)
    for head, logits in found.items():
        expected = by_numpy(task, tensors, head)
        np.testing.assert_allclose(logits.exp().numpy(), expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(logits.softmax(dim=1).numpy(), expected, rtol=1e-4, atol=1e-6)


def test_certain_networks_leave_a_finite_loss() -> None:
    def certain(batch: Mapping[str, Any]) -> dict[str, Tensor]:
        scores = torch.stack([batch["image"][:, 0], -batch["image"][:, 0]], dim=1)
        return {"aerial": 1e4 * scores}

    logits = averaged(certain, {"image": torch.ones(1, 1, 4, 4)}, "d4")["aerial"]
    labels = torch.ones(1, 4, 4, dtype=torch.int64)
    assert torch.isfinite(torch.nn.functional.cross_entropy(logits, labels))


@pytest.mark.parametrize("model", ["unet", "utt"])
def test_a_test_with_symmetries_has_a_finite_loss_and_only_it_is_turned(model: str) -> None:
    plain_task, turned = (build_task(f"model={model}", f"test_time={w}") for w in ("none", "d4"))
    scores = []
    for task in (plain_task, turned):
        tester = trainer()
        tester.validate(task, loader(), verbose=False)
        validated = float(tester.callback_metrics["val/loss"])
        tester.test(task, loader(), verbose=False)
        tested = float(tester.callback_metrics["test/loss"])
        assert np.isfinite(tested)
        scores.append((validated, tested))
    (val, test), (val_turned, test_turned) = scores
    assert val == val_turned
    assert test != test_turned


def test_a_config_without_the_group_has_the_identity_of_none() -> None:
    none, d4 = (compose_config("preset=debug", f"test_time={word}") for word in ("none", "d4"))
    values = plain(none)
    del values["test_time"]
    older = build(Config, values)
    assert identity(older, "x") == identity(none, "x") != identity(d4, "x")


@pytest.mark.slow
def test_a_runs_checkpoint_is_the_same_with_and_without(tmp_path: Path) -> None:
    contents = []
    for word in ("none", "d4"):
        folder = tmp_path / word
        run(tmp_path, folder, "model=unet", "data=aerial_only", f"test_time={word}")
        contents.append(read_checkpoint(RunFolder(folder).best))
    one, other = contents
    assert one["hyper_parameters"] == other["hyper_parameters"]
    assert one["state_dict"].keys() == other["state_dict"].keys()
    assert all(torch.equal(one["state_dict"][n], other["state_dict"][n]) for n in one["state_dict"])
