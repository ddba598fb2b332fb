"""Statistics of the training patches against all pixels at once, and what is normalised by them."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flair2_exp.config.data import S2PreprocConfig, SplitConfig
from flair2_exp.data import preparation, statistics
from flair2_exp.data.datamodule import FlairDataModule
from flair2_exp.data.normalisation import Moments, Normalisation, imagenet
from flair2_exp.errors import DamagedPatchError, DataError
from tests.data.trees import Tree, groups_of

BOTH = frozenset({"aerial", "satellite"})
MONTHLY = S2PreprocConfig(name="monthly", monthly=True, size=16)


def module(tree: Tree, reads: frozenset[str] = BOTH, **options: Any) -> FlairDataModule:
    groups = groups_of(
        tree.root, **{"s2_preproc": S2PreprocConfig(size=16), "split": REFERENCE} | options
    )
    data = FlairDataModule(groups, reads=reads)
    data.setup()
    return data


REFERENCE = SplitConfig(name="reference", train_fraction=0.5)


@pytest.mark.parametrize("series", [S2PreprocConfig(size=16), MONTHLY])
def test_they_are_those_of_all_scaled_values_at_once(
    shared_tree: Tree, series: S2PreprocConfig
) -> None:
    data = module(shared_tree, s2_preproc=series, bands=("nir", "red", "green"))
    computed = statistics.compute(data)
    dataset = data.dataset("train")
    samples = [dataset.reader.read(int(patch)) for patch in dataset.patches]
    images = np.stack([each.image for each in samples if each.image is not None]) / 255.0
    assert computed.image is not None
    assert computed.image.bands == ("nir", "red", "green")
    np.testing.assert_allclose(computed.image.mean, images.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(computed.image.std, images.std(axis=(0, 2, 3)), rtol=1e-9)
    frames = np.concatenate([each.frames for each in samples if each.frames is not None])
    real = frames[frames.reshape(len(frames), -1).any(axis=1)] / 10_000.0
    assert computed.frames == len(real)
    assert series.monthly or len(real) < len(frames)
    assert computed.series is not None
    np.testing.assert_allclose(computed.series.mean, real.mean(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(computed.series.std, real.std(axis=(0, 2, 3)), rtol=1e-5)
    labels = np.stack([each.label for each in samples])
    assert list(computed.pixels.values()) == np.bincount(labels.ravel(), minlength=13).tolist()
    assert (computed.patches, computed.damaged) == (len(samples), 0)


def test_processes_and_the_order_of_patches_do_not_move_a_digit(
    shared_tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = module(shared_tree, s2_preproc=MONTHLY)
    monkeypatch.setattr(statistics, "_CHUNK", 1)
    other = module(shared_tree, s2_preproc=MONTHLY, workers=2)
    turned = other.dataset("train")
    turned.patches = turned.patches[::-1].copy()
    assert statistics.compute(one) == statistics.compute(other)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each computation."""
    calls: list[int] = []
    compute = statistics.compute

    def counting(*arguments: Any) -> statistics.Statistics:
        calls.append(1)
        return compute(*arguments)

    monkeypatch.setattr(statistics, "compute", counting)
    return calls


def test_they_are_computed_once_for_what_they_depend_on(
    own_tree: Tree, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = counted(monkeypatch)
    with caplog.at_level(logging.INFO):
        first = statistics.of(module(own_tree))
    assert "computing the statistics of 2 training patches, this once" in caplog.text
    normalised = S2PreprocConfig(name="x", size=16, normalisation="dataset")
    assert statistics.of(module(own_tree, s2_preproc=normalised)) == first
    reads = BOTH | {"metadata"}
    assert statistics.of(module(own_tree, reads)) == first
    assert len(calls) == 1
    others: list[dict[str, Any]] = [
        {"bands": ("blue", "green", "red")},
        {"classes": 19},
        {"s2_preproc": S2PreprocConfig(size=24)},
        {"split": dataclasses.replace(REFERENCE, label_fraction=0.5)},
        {"reads": frozenset({"aerial"})},
    ]
    for number, options in enumerate(others):
        statistics.of(module(own_tree, **options))
        assert len(calls) == number + 2, options
    image = own_tree.image(str(module(own_tree).dataset("train").index.ids[0]))
    image.write_bytes(own_tree.image("IMG_000005").read_bytes())
    statistics.of(module(own_tree))
    assert len(calls) == len(others) + 2


def test_a_changed_test_patch_leaves_them_alone(
    own_tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(monkeypatch)
    statistics.of(module(own_tree))
    own_tree.image("IMG_000005").write_bytes(own_tree.image("IMG_000001").read_bytes())
    statistics.of(module(own_tree))
    assert len(calls) == 1


def test_who_asks_while_another_computes_waits_for_it(
    shared_tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(monkeypatch)
    modules = [module(shared_tree) for _ in range(4)]
    results: list[statistics.Statistics] = []
    threads = [
        threading.Thread(target=lambda one=one: results.append(statistics.of(one)))  # type: ignore[misc]
        for one in modules
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert all(each == results[0] for each in results)


def test_they_lie_beside_a_prepared_store(own_tree: Tree, tmp_path: Path) -> None:
    store = tmp_path / "store"
    tree = module(own_tree)
    preparation.prepare(tree.source, store, series=tree.series)
    data = module(own_tree, store=str(store))
    kept = statistics.of(data)
    (file,) = (store / "statistics").glob("*.json")
    assert statistics.Statistics.of_text(file.read_text()) == kept == statistics.compute(tree)
    module(own_tree, store=str(store))  # which is still a sound store


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"patches": 1}'])
def test_a_torn_file_is_computed_anew(
    own_tree: Tree, text: str, cache_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = statistics.of(module(own_tree))
    (file,) = (cache_home / "flair2_exp").glob("statistics-*.json")
    file.write_text(text)
    assert statistics.of(module(own_tree)) == first
    assert json.loads(file.read_text())["patches"] == 2


def test_a_damaged_patch_stops_or_is_left_out_and_counted(own_tree: Tree) -> None:
    first, last = module(own_tree).split.train.tolist()
    data = module(own_tree)
    own_tree.mask(str(data.index.ids[last])).write_bytes(b"II*\0")
    for workers in (0, 2):
        with pytest.raises(
            DamagedPatchError, match=rf"{data.index.ids[last]} is damaged.*\n.*skip"
        ):
            statistics.of(module(own_tree, workers=workers))
    skipping = module(own_tree, on_damaged="skip")
    computed = statistics.of(skipping)
    assert (computed.patches, computed.damaged) == (1, 1)
    own_tree.mask(str(data.index.ids[first])).write_bytes(b"II*\0")
    with pytest.raises(DataError, match="none of 2 training patches can be read"):
        statistics.compute(skipping)


# Normalisation on the device.


def test_nothing_is_changed_without_it(shared_tree: Tree) -> None:
    data = module(shared_tree)
    assert data.normalisation == Normalisation()
    batch = {"image": torch.rand(1, 5, 4, 4)}
    assert data.normalisation.applied(batch)["image"] is batch["image"]


def test_by_the_data_a_band_has_mean_0_and_deviation_1_and_padding_stays_zero(
    shared_tree: Tree,
) -> None:
    series = S2PreprocConfig(size=16, normalisation="dataset")
    data = module(shared_tree, normalisation="dataset", s2_preproc=series, batch_size=2)
    plain = module(shared_tree, batch_size=2)
    (batch,) = data.train_dataloader()
    (same,) = plain.train_dataloader()
    scaled = data.on_after_batch_transfer(batch, 0)
    image = scaled["image"].double()
    assert image.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    torch.testing.assert_close(
        image.std(dim=(0, 2, 3), correction=0), torch.ones(5).double(), rtol=1e-5, atol=0
    )
    padding = scaled["padding"]
    real = scaled["series"][~padding].double()
    assert padding.any()
    assert not scaled["series"][padding].any()
    assert real.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    undone = data.normalisation.undone(scaled)
    expected = plain.on_after_batch_transfer(same, 0)
    for name in ("image", "series"):
        torch.testing.assert_close(undone[name], expected[name], rtol=1e-5, atol=1e-6)


def test_imagenets_values_go_to_their_bands(shared_tree: Tree) -> None:
    data = module(shared_tree, frozenset({"aerial"}), normalisation="imagenet",
                  bands=("nir", "red", "blue"))  # fmt: skip
    assert data.normalisation.image == Moments(
        ("nir", "red", "blue"), (0.5, 0.485, 0.406), (0.25, 0.229, 0.225)
    )
    (batch, *_) = data.val_dataloader()
    scaled = data.on_after_batch_transfer(batch, 0)["image"]
    expected = (batch["image"][:, 1].double() / 255 - 0.485) / 0.229
    torch.testing.assert_close(scaled[:, 1].double(), expected, rtol=0, atol=1e-5)


def test_a_band_that_is_the_same_everywhere_becomes_zero() -> None:
    flat = Moments(("red",), (0.5,), (0.0,))
    values = flat.applied(torch.full((2, 1, 4, 4), 0.5))
    assert not values.any()


def test_a_trained_networks_values_take_the_place_of_the_datas(shared_tree: Tree) -> None:
    recorded = Normalisation(image=imagenet(["red", "green", "blue", "nir", "elevation"]))
    again = Normalisation.of_plain(json.loads(json.dumps(recorded.plain())))
    assert again == recorded
    groups = groups_of(shared_tree.root, normalisation="dataset", split=REFERENCE)
    data = FlairDataModule(groups, reads=BOTH, normalisation=again)
    assert data.normalisation == recorded
    assert Normalisation.of_plain(None) == Normalisation()


# Class weights.


@pytest.mark.parametrize("kind", ["inverse", "sqrt_inverse", "log"])
def test_weights_fall_with_frequency_and_are_1_on_average(kind: str) -> None:
    pixels = {"water": 100, "forest": 900, "snow": 0, "other": 5000}
    weights = statistics.class_weights(kind, pixels, {"water", "forest", "snow"})
    formula = {
        "inverse": lambda p: 1 / p,
        "sqrt_inverse": lambda p: p**-0.5,
        "log": lambda p: 1 / np.log(1.02 + p),
    }[kind]
    assert math.isclose(weights["water"] / weights["forest"], formula(0.1) / formula(0.9))
    assert weights["snow"] == weights["water"] > weights["forest"]
    assert weights["other"] == 1
    assert math.isclose((2 * weights["water"] + weights["forest"]) / 3, 1)
