from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from flair2_exp.errors import CheckpointError
from flair2_exp.inference.predictor import Predictor
from flair2_exp.inference.weights import card_path, model_card, write_weights
from tests.inference import export_made as made


@pytest.fixture(scope="module")
def utt(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    path = tmp_path_factory.mktemp("utt") / "net.ckpt"
    overrides = ("model=utt", "s2_preproc=raw", "metadata=on", "model.channels_last=true")
    made.checkpoint(path, *overrides, normalisation=made.NORMALISATION)
    return Predictor.from_run(path, device="cpu")


def test_predictions_of_exported_weights_are_the_runs_bit_by_bit(
    utt: Predictor, tmp_path: Path
) -> None:
    write_weights(utt.members[0], tmp_path / "net.safetensors")
    loaded = Predictor.from_run(tmp_path / "net.safetensors", device="cpu")
    arrays = made.patches(2)
    np.testing.assert_array_equal(made.expected(loaded, arrays), made.expected(utt, arrays))
    assert loaded.bands == utt.bands
    assert loaded.members[0].inputs == utt.members[0].inputs
    assert loaded.members[0].normalisation == utt.members[0].normalisation


def test_exported_weights_can_be_exported_again(utt: Predictor, tmp_path: Path) -> None:
    first, second = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    write_weights(utt.members[0], first)
    write_weights(Predictor.from_run(first, device="cpu").members[0], second)
    one, two = load_file(first), load_file(second)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    options = "flair2_exp.hyper_parameters"
    with safe_open(first, "pt") as a, safe_open(second, "pt") as b:
        assert a.metadata()[options] == b.metadata()[options]


def test_a_file_that_is_cut_short_is_refused(utt: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    write_weights(utt.members[0], path)
    whole = path.read_bytes()
    for length in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="not a readable safetensors file"):
            Predictor.from_run(path, device="cpu")


def test_weights_of_others_are_not_taken_for_a_run(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"holds weights alone.*\n.*model\.weights=PATH"):
        Predictor.from_run(tmp_path / "other.safetensors", device="cpu")
    with pytest.raises(CheckpointError, match="there is no such checkpoint"):
        Predictor.from_run(tmp_path / "none.safetensors", device="cpu")


def test_on_a_full_disk_neither_weights_nor_card_are_left(
    utt: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)  # the card's, after the weights
    with pytest.raises(OSError, match="No space left"):
        write_weights(utt.members[0], tmp_path / "net.safetensors", "a card")
    assert not list(tmp_path.iterdir())


def test_the_card_of_a_lone_checkpoint_says_what_is_not_known(
    utt: Predictor, tmp_path: Path
) -> None:
    path = tmp_path / "net.safetensors"
    write_weights(utt.members[0], path, model_card(utt.members[0], path.name))
    card = card_path(path).read_text()
    assert 'Predictor.from_run("net.safetensors")' in card
    assert "exported from a checkpoint without its run" in card
    assert "| bands | red, green, blue, nir, elevation |" in card
    assert "see that data set's licence" in card
    assert "{" not in card
