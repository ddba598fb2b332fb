from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flair2_exp.config.experiment import Config
from flair2_exp.config.groups import config_folder
from flair2_exp.config.model import FusionConfig
from flair2_exp.config.training import OptimizerConfig
from flair2_exp.errors import ConfigError
from tests.configs import compose_config

FOLDER = config_folder()
GROUP_FILES = sorted(
    path for path in FOLDER.glob("*/**/*.yaml") if path.relative_to(FOLDER).parts[0] != "hydra"
)
# What a group's file cannot do without when it is chosen alone.
COMPANIONS = {
    "data/aerial_only": ["model=unet"],
    "dataset/flair2": ["dataset.root=somewhere"],
    "dataset/flair2_toy": ["dataset.root=somewhere"],
    "dataset/real": ["dataset.root=somewhere"],
    "split/file": ["split.file=mine.yaml"],
    "split/leave_domains_out": ["split.domains=[D004_2021]"],
    "tracking/server": ["tracking.uri=http://127.0.0.1:5000"],
}


def _group_option(path: Path) -> tuple[str, str]:
    group, _, option = str(path.relative_to(FOLDER).with_suffix("")).partition("/")
    return group, option


@pytest.mark.parametrize("path", GROUP_FILES, ids=lambda path: "/".join(_group_option(path)))
def test_every_config_file_composes_and_validates(path: Path) -> None:
    group, option = _group_option(path)
    overrides = COMPANIONS.get(f"{group}/{option}", [])
    config = compose_config(f"{group}={option}", *overrides)
    node = getattr(config, group, None)
    if dataclasses.is_dataclass(node) and hasattr(node, "name"):
        assert node.name == option


@pytest.mark.parametrize("path", GROUP_FILES, ids=lambda path: "/".join(_group_option(path)))
def test_every_config_file_opens_with_a_command_that_chooses_it(path: Path) -> None:
    group, option = _group_option(path)
    lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
    assert re.match(r"# (\w+=\S+ )*flair2-exp ", lines[0]), lines[0]
    assert f"{group}={option}" in lines[0]


def test_the_defaults_are_the_documented_ones() -> None:
    config = compose_config()
    assert (config.data.name, config.model.name, config.s2_preproc.name) == (
        "aerial_s2",
        "utt",
        "monthly_cloudfree",
    )
    assert (config.aug.name, config.dataset.name, config.compat) == ("flips", "sample", "corrected")


def test_reference_compatibility_switches_every_quirk_of_the_baseline() -> None:
    def quirks(config: Config) -> dict[str, object]:
        return {
            "split": config.split.name,
            "cover": config.s2_preproc.cover,
            "scale": config.s2_preproc.scale,
            "days": config.s2_preproc.days,
            "month": config.metadata.month,
            "metadata fusion": config.metadata.fusion,
            "normalise_padding": config.utae.normalise_padding,
            "collapsed": config.fusion.collapsed,
            "dropout": config.fusion.dropout,
            "satellite weights": config.loss.satellite_class_weights,
            "other pixels": config.metric.other_pixels,
            "aug.satellite": config.aug.satellite,
            "drop_last": config.data.drop_last,
            "test batches": config.data.test_batch_size,
        }

    corrected, reference = quirks(compose_config()), quirks(compose_config("compat=reference"))
    assert all(corrected[name] != reference[name] for name in corrected)


def test_an_experiment_calls_its_row_as_its_file() -> None:
    for file in sorted((config_folder() / "experiment").rglob("*.yaml")):
        choice = f"{file.parent.name}/{file.stem}"
        data = ("dataset=flair2", "dataset.root=x")
        assert compose_config(f"experiment={choice}", *data).name == file.stem


STRONG = sorted((config_folder() / "experiment" / "strong").glob("*.yaml"))


@pytest.mark.parametrize("file", STRONG, ids=lambda file: file.stem)
def test_strong_experiments_are_scored_as_the_challenge_and_say_that_they_are_untried(
    file: Path,
) -> None:
    config = compose_config(f"experiment=strong/{file.stem}", "dataset=flair2", "dataset.root=x")
    assert config.metric.other_pixels == "keep"
    assert config.model.encoder_weights == "imagenet"
    assert config.optimizer._target_ == "torch.optim.AdamW"
    assert config.scheduler.warmup_epochs > 0
    assert "We have not run this file on the real data" in file.read_text()


@pytest.mark.parametrize(
    ("overrides", "weights"),
    [
        ((), None),
        (("dataset=flair2", "dataset.root=x"), "imagenet"),
        (("dataset=flair2", "dataset.root=x", "preset=tiny"), None),
        (("dataset=flair2", "dataset.root=x", "model.encoder_weights=null"), None),
        (("model.encoder_weights=imagenet",), "imagenet"),
    ],
    ids=str,
)
def test_encoders_start_from_imagenet_on_real_data_alone(
    overrides: tuple[str, ...], weights: str | None
) -> None:
    assert compose_config(*overrides).model.encoder_weights == weights


@pytest.mark.parametrize(
    ("overrides", "step"),
    [
        (("model=unet",), 32),
        (("model=upernet", "model.depth=4"), 16),
        (("model=pspnet",), 8),
        (("model=pan",), 16),
        (("model=pan", "+model.options.encoder_output_stride=32"), 32),
        (("model=dpt",), 32),
        (("model=utt", "model.decoder=fpn", "model.depth=3"), 8),
        (("model=unet", "model.patch_multiple=4"), 4),
    ],
    ids=str,
)
def test_the_sizes_of_patches_follow_from_decoder_and_depth(
    overrides: tuple[str, ...], step: int
) -> None:
    size = 128 + step  # up to 1024 are made
    fits = compose_config(*overrides, f"dataset.sample.patch_size={size}")
    assert fits.model.patch_step == step
    with pytest.raises(ConfigError, match=f"takes multiples of {step}"):
        compose_config(*overrides, f"dataset.sample.patch_size={size + 1}")


def test_one_quirk_can_be_set_right_by_itself() -> None:
    config = compose_config("compat=reference", "aug.satellite=true", "split=official")
    assert config.aug.satellite
    assert config.split.name == "official"
    assert config.fusion.collapsed == "first_sample"


@pytest.mark.parametrize("option", ["unet", "unet_metadata_aug", "utt", "utt_cloudfree_monthly",
                                    "utt_cloudfree_monthly_aug"])  # fmt: skip
def test_leaderboard_experiments_train_as_published(option: str) -> None:
    config = compose_config(f"experiment=leaderboard/{option}", "dataset.root=somewhere")
    assert config.compat == "reference"
    assert config.model.encoder == "resnet34"
    assert config.model.encoder_weights == "imagenet"
    assert config.optimizer == OptimizerConfig(_target_="torch.optim.SGD", lr=0.001)
    assert (config.data.batch_size, config.trainer.max_epochs) == (10, 100)
    assert config.callbacks.early_stopping.patience == 30
    assert (config.data.val_batch_size, config.data.test_batch_size) == (10, 1)
    assert config.data.drop_last
    assert config.callbacks.best.monitor == "val/loss"


def test_small_presets_keep_batches_of_one_in_the_test_and_every_quirk_corrected_keeps_them() -> (
    None
):
    tiny = compose_config("experiment=leaderboard/utt", "preset=tiny").data
    assert (tiny.val_batch_size, tiny.test_batch_size, tiny.drop_last) == (8, 1, True)
    corrected = compose_config("quirk=all").data
    assert (corrected.test_batch_size, corrected.drop_last) == (1, False)


REFUSED = [
    (["model=utt", "data=aerial_only"], r"model=utt needs.*data=aerial_s2, or model=unet"),
    (["s2_preproc.size=30"], r"s2_preproc.size=30.*multiple of 8.*use 24 or 32"),
    (["s2_preproc.size=12"], r"s2_preproc.size=12: expected 16 to 112"),
    (["s2_preproc.size=120"], r"s2_preproc.size=120: expected 16 to 112"),
    (["s2_preproc.cover=both"], r"s2_preproc.cover=both: expected one of union, sum"),
    (["trainer.max_epochs=0"], r"trainer.max_epochs=0: expected 1 to"),
    (["trainer.precision=8"], r"trainer.precision=8: expected one of"),
    (["fusion.dropout_rate=1.5"], r"fusion.dropout_rate=1.5: expected 0 to 1"),
    (["optimizer.lr=-1"], r"optimizer.lr=-1.0: expected 0 to 10000"),
    (["optimizer.lr=nan"], r"optimizer.lr=nan: expected 0 to"),
    (["optimizer.lr=inf"], r"optimizer.lr=inf: expected 0 to 10000"),
    (["seed=-1"], r"seed=-1: expected 0 to 4294967295"),
    (["trainer.limit_val_batches=0"], r"trainer.limit_val_batches=0: expected 1 to"),
    (["trainer.threads=0"], r"trainer.threads=0: expected 1 to"),
    (["+aug.satelite=false"], r"aug.satelite: no such option; did you mean satellite"),
    (["sweep.name=../x"], r"sweep.name='../x': expected the name of a folder"),
    (["tune.name=''"], r"tune.name='': expected the name of a folder"),
    (["data.bands=[red,red,nir]"], r"data.bands=.*different bands"),
    (["data.bands=[red,infrared,nir]"], r"data.bands=infrared: expected one of"),
    (["data.classes=12"], r"data.classes=12: expected one of 13, 19"),
    (["utae.heads=5"], r"utae.heads=5 does not divide 64, one of utae.encoder_widths"),
    (["utae.encoder_widths=[24,64,128,128]"], r"utae.heads=16 does not divide 24"),
    (["scheduler=plateau", "scheduler.warmup_epochs=2"], r"scheduler=plateau has no warm-up"),
    (["dataset.sample.patch_size=100"], r"patches of 100 px.*patch_size=96 or 128"),
    (["data.batch_size=1000000000000000000000"], r"data.batch_size=1\d+: expected 1 to 100000"),
    (["optimizer.lr=1e308"], r"optimizer.lr=1e\+308: expected 0 to 10000"),
    (["utae.encoder_widths=[64,64,128]"], r"hold four widths each"),
    (["model.decoder_channels=[64,32]"], r"expected five widths"),
    (["objective=test/miou"], r"objective=test/miou: choosing by the test set"),
    (["objective=[]"], r"names no metric"),
    (["objective=val/moiu"], r"objective=val/moiu is never logged; did you mean val/miou"),
    (
        ["callbacks.best.monitor=val/iou"],
        r"callbacks.best.monitor=val/iou is never logged; did you",
    ),
    (["callbacks.best.monitor=val/miou"], r"worst checkpoint.*use callbacks.best.mode=max"),
    (
        ["callbacks=best_miou", "callbacks.best.mode=min"],
        r"worst checkpoint.*use callbacks.best.mode=max",
    ),
    (["model=utae", "metadata=on"], r"metadata=on: model=utae does not read them"),
    (["dataset=flair2"], r"dataset=flair2 needs its place: dataset.root="),
    (["tracking.experiment=''"], r"tracking.experiment is empty"),
    (["dataset.sample.super_patch=24"], r"use dataset.sample.super_patch=40"),
    (["tracking=server"], r"tracking=server needs tracking\.uri="),
    (["tracking.uri=http://me:secret@host"], r"tracking.uri holds credentials"),
    (["split=file"], r"split=file needs split.file=PATH"),
    (["train=false"], r"checkpoint=PATH"),
    (["train=false", "test=false"], r"nothing to do"),
    (["+loss.class_weights.watr=1"], r"no class 'watr'; did you mean water"),
    (["loss.class_weights.other=-1"], r"loss.class_weights.other=-1.0: expected 0 to 1000000"),
]


@pytest.mark.parametrize(("overrides", "message"), REFUSED, ids=lambda each: " ".join(each)
                         if isinstance(each, list) else "")  # fmt: skip
def test_what_no_experiment_can_run_with_is_refused(
    overrides: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLAIR2_ROOT", raising=False)
    with pytest.raises(ConfigError, match=message) as caught:
        compose_config(*overrides)
    assert len(str(caught.value).splitlines()) <= 2


@given(value=st.floats(allow_nan=True))
def test_a_bounded_number_is_accepted_exactly_within_its_bounds(value: float) -> None:
    if 0.0 <= value <= 1.0:
        assert FusionConfig(dropout_rate=value).dropout_rate == value
    else:
        with pytest.raises(ConfigError, match=r"fusion\.dropout_rate"):
            FusionConfig(dropout_rate=value)
