"""The rules of the groups that describe networks and their learning."""

from __future__ import annotations

from typing import Any

import pytest

from flair2_exp.config.data import MetadataConfig, S2PreprocConfig
from flair2_exp.config.fields import Group
from flair2_exp.config.model import FusionConfig, ModelConfig, UTAEConfig
from flair2_exp.config.training import LossConfig, SchedulerConfig, TrainerConfig
from flair2_exp.errors import ConfigError

WIDTHS = (16, 16, 32, 32)
SMALL: dict[str, Any] = {
    "encoder_widths": WIDTHS, "decoder_widths": WIDTHS, "heads": 4, "d_model": 32
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "utae.heads=3 does not divide 16"),
        ({"d_model": 30}, "utae.heads=4 does not divide 30"),
        ({"encoder_widths": (16, 16, 32)}, "four widths each"),
        ({"decoder_widths": (16, 16, 32, 64)}, "so they must agree"),
        ({"encoder_widths": (18, 16, 32, 32), "aggregation": "mean"}, "multiples of 4"),
        ({"heads": 32, "aggregation": "mean"}, "utae.heads=32 leaves each head one channel"),
        ({"aggregation": "max"}, "utae.aggregation=max"),
    ],
)
def test_sizes_of_a_u_tae_that_do_not_fit_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    UTAEConfig(**SMALL)
    with pytest.raises(ConfigError, match=message):
        UTAEConfig(**{**SMALL, **changes})


def test_heads_need_not_divide_the_higher_scales_where_they_do_not_share_them() -> None:
    widths = (20, 20, 32, 32)
    with pytest.raises(ConfigError, match=r"utae\.heads=8 does not divide 20"):
        UTAEConfig(**{**SMALL, "encoder_widths": widths, "heads": 8})
    UTAEConfig(**{**SMALL, "encoder_widths": widths, "heads": 8, "aggregation": "mean"})


@pytest.mark.parametrize(
    ("group", "values", "message"),
    [
        (FusionConfig, {"terms": "none"}, "fusion.terms=none"),
        (FusionConfig, {"collapsed": "mean"}, "fusion.collapsed=mean"),
        (FusionConfig, {"dropout": "sometimes"}, "fusion.dropout=sometimes"),
        (FusionConfig, {"dropout_rate": 1.5}, "fusion.dropout_rate=1.5: expected 0 to 1"),
        (MetadataConfig, {"fusion": "columns"}, "metadata.fusion=columns"),
        (S2PreprocConfig, {"size": 8}, "s2_preproc.size=8: expected 16 to 112"),
        (S2PreprocConfig, {"size": 42}, "s2_preproc.size=42: .*multiple of 8"),
        (ModelConfig, {"reads": ("aerial",), "decoder_channels": (64, 32)}, "five widths"),
        (ModelConfig, {"reads": ("aerial",), "depth": 4}, r"four widths.*model\.depth=4"),
        (ModelConfig, {"depth": 2}, "model.depth=2: expected 3 to 5"),
        (ModelConfig, {"decoder": "fpm"}, "model.decoder=fpm: expected one of unet"),
        (ModelConfig, {"reads": ("radar",)}, "model.reads=radar: expected one of aerial"),
        (LossConfig, {"class_weights": {"water": -1.0}}, "loss.class_weights.water=-1"),
        (
            SchedulerConfig,
            {"_target_": "flair2_exp.training.schedules.Plateau", "warmup_epochs": 2},
            "warmup_epochs=2: .*plateau",
        ),
        (TrainerConfig, {"devices": 0}, "trainer.devices=0: expected a number from 1 up"),
        (TrainerConfig, {"precision": "8-true"}, "trainer.precision=8-true"),
    ],
)
def test_values_that_nothing_can_be_built_with_are_refused(
    group: type[Group], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        group(**values)


def test_the_published_sizes_are_the_defaults() -> None:
    published = UTAEConfig()
    assert (published.heads, published.d_model, published.d_k) == (16, 256, 4)
    assert published.encoder_widths == published.decoder_widths == (64, 64, 128, 128)
