from __future__ import annotations

from pathlib import Path

import pytest

from flair2_exp.config.experiment import Config
from flair2_exp.config.identity import contents, deciding, identity, outline
from tests.configs import compose_config

SAME = [
    ("optimizer.lr=1", "optimizer.lr=1.0"),
    ("data.bands=[red,green,blue]", "data.bands=['red', 'green', 'blue']"),
    ("+optimizer.options.momentum=0", "+optimizer.options={momentum: 0.0}"),
    ("aug=flips", "aug.geometry=flips"),
    ("data.workers=0", "data.workers=7"),
    ("paths.root=/a", "paths.root=/b"),
    ("tracking=off", "tracking.experiment=another"),
    ("callbacks.progress.bars=never", "callbacks.panel.patches=1 callbacks.resume.save_minutes=3"),
    ("trainer=cpu", "trainer=gpu"),
    ("trainer.devices=2", "trainer.num_nodes=2"),
    ("model=unet", "model=unet loss.satellite=2 loss.satellite_class_weights=reference"),
    ("model=unet", "model=unet aug.satellite=false aug.drop_dates=0.5"),
    ("aug=none", "aug=none aug.probability=0.1"),
    ("split=official", "split=official split.seed=1 split.train_fraction=0.5"),
    ("s2_preproc=raw", "s2_preproc=raw s2_preproc.threshold=1 s2_preproc.max_cover=1"),
    ("s2_preproc=monthly", "s2_preproc=monthly s2_preproc.days=reference"),
    ("loss=cross_entropy", "loss.gamma=1"),
    ("scheduler=cosine", "scheduler.factor=0.1 scheduler=cosine scheduler.patience=1"),
    (
        "fusion.terms=cropped",
        "fusion.terms=cropped fusion.mlp_dropout=0 fusion.collapsed=first_sample",
    ),
    ("seed=1", "fusion.dropout=always_batch"),
    (
        "model.weights=a model.encoder_weights=null",
        "model.weights=a model.encoder_weights=imagenet",
    ),
    (
        "train=false checkpoint=a",
        "train=false checkpoint=a data.batch_size=3 loss=focal loss.gamma=1 seed=7 aug=d4",
    ),
    ("data.test_batch_size=10", "data.test_batch_size=3"),
    (
        "train=false checkpoint=a data.val_batch_size=10",
        "train=false checkpoint=a data.val_batch_size=3",
    ),
    ("train=false checkpoint=a trainer.devices=1", "train=false checkpoint=a trainer.devices=2"),
    ("model=unet", "model=unet data=aerial_only"),
    ("model=unet", "model=unet s2_preproc=raw utae.heads=8 fusion.dropout_rate=0.5"),
    ("model=utae", "model=utae fusion.dropout_rate=0.5"),
    ("name=one", "name=another"),
    (
        "train=false checkpoint=a trainer.max_epochs=1 optimizer.lr=0.1",
        "train=false checkpoint=a trainer.max_epochs=2 optimizer.lr=0.2",
    ),
    ("compat=reference split=official", "quirk=as_published"),
]
DIFFERENT = [
    "seed=2", "optimizer.lr=0.002", "model=unet", "s2_preproc=raw", "aug=d4", "metadata=on",
    "loss.label_smoothing=0.1", "trainer.max_epochs=99", "data.bands=[green,red,blue]",
    "trainer.precision=bf16-mixed", "utae.normalise_padding=true", "compat=reference",
    "callbacks=best_miou", "+optimizer.options.momentum=0.9", "trainer.devices=2",
    "metric.other_pixels=keep", "data.val_batch_size=3", "+loss.class_weights.water=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def default() -> Config:
    return compose_config()


@pytest.mark.parametrize(("one", "other"), SAME)
def test_what_does_not_decide_the_result_does_not_change_the_identity(one: str, other: str) -> None:
    assert identity(compose_config(*_words(one)), "x") == identity(
        compose_config(*_words(other)), "x"
    )


def _words(line: str) -> list[str]:
    """Overrides of a line; none of those here holds a space but one, whose space ends a colon."""
    return line.split(" ") if ": " not in line and ", " not in line else [line]


@pytest.mark.parametrize("override", DIFFERENT)
def test_what_decides_the_result_changes_the_identity(override: str, default: Config) -> None:
    assert identity(compose_config(override), "x") != identity(default, "x")


QUIRKS = ["fusion.collapsed=first_sample", "utae.normalise_padding=true",
          "fusion.dropout=always_batch fusion.dropout_rate=0.5"]  # fmt: skip


@pytest.mark.parametrize("quirk", QUIRKS)
def test_where_scores_depend_on_batches_those_of_the_evaluation_count_per_device(
    quirk: str,
) -> None:
    tested = ("train=false", "checkpoint=a", *quirk.split())
    divisions = (
        ("data.test_batch_size=10",), ("data.test_batch_size=5",), ("data.val_batch_size=5",),
        ("data.test_batch_size=5", "trainer.devices=2"), ("trainer.devices=2",),
    )  # fmt: skip
    identities = {identity(compose_config(*tested, *each), "x") for each in divisions}
    assert len(identities) == len(divisions)


def test_training_on_two_devices_with_batches_of_five_is_not_training_on_one_with_ten() -> None:
    one, two = ("data.batch_size=10",), ("data.batch_size=5", "trainer.devices=2")
    assert identity(compose_config(*one), "x") != identity(compose_config(*two), "x")


def test_batch_norms_over_all_devices_count_where_several_share_a_training() -> None:
    shared = "trainer.sync_batchnorm=true"
    for several in ("trainer.devices=2", "trainer.devices=-1", "trainer.num_nodes=2"):
        with_it, without = compose_config(several, shared), compose_config(several)
        assert identity(with_it, "x") != identity(without, "x")
    assert identity(compose_config(shared), "x") == identity(compose_config(), "x")
    tested = ("train=false", "checkpoint=a", "trainer.devices=2")
    assert identity(compose_config(*tested, shared), "x") == identity(compose_config(*tested), "x")


def test_data_and_version_decide_too(default: Config) -> None:
    assert identity(default, "x") != identity(default, "y")
    assert identity(default, "x", "1.0") != identity(default, "x", "2.0")


def test_files_of_weights_count_by_their_content(tmp_path: Path) -> None:
    one, other = tmp_path / "one.pth", tmp_path / "other.pth"
    one.write_bytes(b"weights")
    other.write_bytes(b"weights")
    first, second = (compose_config(f"model.weights={path}") for path in (one, other))
    assert identity(first, "x") == identity(second, "x")
    other.write_bytes(b"Weights")  # of the same length
    assert identity(first, "x") != identity(second, "x")
    assert set(contents(second)) == {"model.weights"}


def test_a_network_of_its_own_options_does_not_hang_on_those_of_others() -> None:
    config = compose_config("model=utae", "model.encoder=resnet18", "fusion.dropout_rate=0.5")
    names = deciding(config, "x")
    assert not [name for name in names if name.startswith(("model.encoder", "fusion"))]
    assert "utae.heads" in names


def test_an_outline_has_what_runs_are_compared_by_and_what_is_not_at_its_default() -> None:
    first = outline(compose_config("model=unet", "data=aerial_only", "optimizer.lr=0.5"))
    other = outline(
        compose_config("model=unet", "data=aerial_only", "+optimizer.options.momentum=0.3")
    )
    assert (first["seed"], first["model.name"], first["optimizer.lr"]) == (1, "unet", 0.5)
    assert {"optimizer.lr", "compat", "split.name"} <= other.keys()
    assert other["optimizer.options.momentum"] == 0.3
    assert len(first) < 40
    assert not [name for name in first if name.startswith(("paths.", "tracking.", "sweep."))]
