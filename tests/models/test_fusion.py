from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor, nn
from torch.nn import functional

from flair2_exp.config.model import FusionConfig
from flair2_exp.models.fusion import SatelliteFusion
from flair2_exp.models.heads import SatelliteHead, footprint
from flair2_exp.models.metadata import MetadataFusion
from flair2_exp.models.reference import translate
from tests.golden_vectors import golden
from tests.models.helpers import batch, build, run, sample, small_spec

PREFIXES = {
    "sd_cropped/": "fm_utae_featmap_cropped.",
    "sd_collapsed/": "fm_utae_featmap_collapsed.",
    "sd_metadata/": "mtd_mlp.",
}


def _weights(arrays: NpzFile, part: str) -> dict[str, Tensor]:
    tensors = {
        prefix + name.removeprefix(golden_prefix): torch.from_numpy(arrays[name])
        for golden_prefix, prefix in PREFIXES.items()
        for name in arrays.files
        if name.startswith(golden_prefix)
    }
    ours = translate(tensors, fused=False)
    return {n.removeprefix(part): t for n, t in ours.items() if n.startswith(part)}


def test_fusion_is_the_published_one() -> None:
    arrays = golden("fusion")
    features = [torch.from_numpy(arrays[f"in/feature{level}"]) for level in range(6)]
    satellite_map = torch.from_numpy(arrays["in/s2_map"])
    channels = [feature.shape[1] for feature in features]
    options = FusionConfig(collapsed="first_sample")
    fusion = SatelliteFusion(satellite_map.shape[1], channels, options).eval()
    fusion.load_state_dict(_weights(arrays, "fusion."))
    with torch.no_grad():
        fused = fusion(features, satellite_map)
    for level, feature in enumerate(fused):
        expected = torch.from_numpy(arrays[f"out/fused{level}"])
        torch.testing.assert_close(feature, expected, rtol=0, atol=1e-4)


def test_metadata_by_rows_are_the_published_ones() -> None:
    arrays = golden("fusion")
    feature, metadata = (torch.from_numpy(arrays[f"in/{n}"]) for n in ("feature5", "metadata"))
    fusion = MetadataFusion(feature.shape[1], feature.shape[2], fusion="rows").eval()
    fusion.load_state_dict(_weights(arrays, "metadata."))
    with torch.no_grad():
        encoded = fusion.mlp(metadata)
        fused = fusion(feature, metadata)
    expected = torch.from_numpy(arrays["out/metadata_encoded"])
    torch.testing.assert_close(encoded, expected, rtol=0, atol=1e-4)
    expected = torch.from_numpy(arrays["out/last_feature_plus_metadata"])
    torch.testing.assert_close(fused, expected, rtol=0, atol=1e-4)


def test_metadata_by_channels_are_the_same_everywhere_in_space() -> None:
    added = MetadataFusion(32, 2, fusion="channels").eval()(
        torch.zeros(2, 32, 2, 2), torch.rand(2, 45)
    )
    assert torch.equal(added, added[:, :, :1, :1].expand_as(added))
    assert added[0, :, 0, 0].unique().numel() == 32


@pytest.mark.parametrize("reference", [False, True])
def test_a_samples_logits_depend_on_its_neighbours_only_with_the_reference_settings(
    reference: bool,
) -> None:
    spec = small_spec(series_size=16)
    if reference:
        spec = replace(
            spec,
            utae=replace(spec.utae, normalise_padding=True),
            fusion=FusionConfig(collapsed="first_sample"),
        )
    model = build(spec)
    inputs = batch([3, 8, 5])
    with torch.no_grad():
        together = run(model, inputs)
        for index in range(3):
            alone = run(model, sample(inputs, index))
            for head, logits in together.items():
                change = float((logits[index] - alone[head][0]).abs().max())
                largest = float(logits.abs().max())
                if not reference:
                    assert change < 1e-5 * max(largest, 1), (index, head)
                elif head == "aerial" and index > 0:
                    assert change > 1e-4 * largest


def _fused(options: FusionConfig, samples: int, *, training: bool) -> Tensor:
    """By how much each sample's feature was changed: (samples,)."""
    torch.manual_seed(0)
    fusion = SatelliteFusion(4, (3, 6), options).train(training)
    features = [torch.zeros(samples, 3, 8, 8), torch.zeros(samples, 6, 4, 4)]
    fused = fusion(features, torch.rand(samples, 4, 16, 16), levels=[1])
    assert fused[0] is features[0]
    change: Tensor = fused[1].abs().amax((1, 2, 3))
    return change


def test_modality_dropout_drops_samples_each_by_itself_and_in_training_alone() -> None:
    options = FusionConfig(dropout_rate=0.5, mlp_dropout=0)
    changed = _fused(options, 64, training=True) > 0
    assert 16 < int(changed.sum()) < 48
    assert (_fused(options, 64, training=False) > 0).all()


def test_reference_modality_dropout_drops_whole_batches_and_in_evaluation_too() -> None:
    options = FusionConfig(dropout="always_batch", dropout_rate=0.5, mlp_dropout=0)
    torch.manual_seed(0)
    fusion = SatelliteFusion(4, (3, 6), options).eval()
    features = [torch.zeros(8, 3, 8, 8), torch.zeros(8, 6, 4, 4)]
    kept = []
    for _ in range(40):
        fused = fusion(features, torch.rand(8, 4, 16, 16))[1]
        changed = fused.abs().amax((1, 2, 3)) > 0
        assert changed.all() or not changed.any()
        kept.append(bool(changed.all()))
    assert 8 < sum(kept) < 32


def test_a_dropped_modality_leaves_the_metadata() -> None:
    options = FusionConfig(dropout="always_batch", dropout_rate=1.0)
    model = build(small_spec(series_size=16, metadata="channels", fusion=options))
    inputs = batch([3, 2])
    with torch.no_grad():
        before = run(model, inputs)["aerial"]
        other_series = run(model, inputs | {"series": inputs["series"] * 2})["aerial"]
        other_metadata = run(model, inputs | {"metadata": 1 - inputs["metadata"]})["aerial"]
    assert torch.equal(before, other_series)
    assert not torch.equal(before, other_metadata)


def test_a_dropped_modality_gives_zero_gradients_and_not_none() -> None:
    options = FusionConfig(dropout="always_batch", dropout_rate=1.0)
    model = build(small_spec(series_size=16, fusion=options)).train()
    logits = run(model, batch([3, 2]))
    torch.autograd.backward([x.sum() for x in logits.values()])
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("size", [16, 40, 112])
def test_the_footprint_is_the_centre_of_the_super_patch(size: int) -> None:
    rows = torch.arange(size, dtype=torch.float32).view(1, 1, size, 1).expand(1, 1, size, size)
    centre = footprint(rows)
    assert centre.shape == (1, 1, 10, 10)
    assert float(centre.mean()) == (size - 1) / 2


def test_the_head_convolves_before_it_resizes_to_the_same_end() -> None:
    head = SatelliteHead(16, 13, 128)
    satellite_map = torch.rand(2, 16, 40, 40)
    expected = head.conv(functional.interpolate(footprint(satellite_map), size=(128, 128)))
    torch.testing.assert_close(head(satellite_map), expected)


def test_each_term_alone_adds_up_to_both() -> None:
    torch.manual_seed(0)
    widths = (3, 6, 0, 8)
    features = [torch.rand(2, n, 32 // 2**level, 32 // 2**level) for level, n in enumerate(widths)]
    satellite_map = torch.rand(2, 4, 16, 16)
    both = SatelliteFusion(4, widths, FusionConfig()).eval()
    alone = {
        term: SatelliteFusion(4, widths, FusionConfig(terms=term)).eval()
        for term in ("cropped", "collapsed")
    }
    for term, fusion in alone.items():
        parameters = {n: p for n, p in both.state_dict().items() if n.startswith(f"{term}.")}
        fusion.load_state_dict(parameters)  # strict: nothing of the other term is there
    with torch.no_grad():
        fused = both(features, satellite_map)
        parts = {term: fusion(features, satellite_map) for term, fusion in alone.items()}
    for level, feature in enumerate(features):
        cropped, collapsed = (parts[term][level] - feature for term in ("cropped", "collapsed"))
        torch.testing.assert_close(feature + cropped + collapsed, fused[level])
        if feature.shape[1]:
            assert float(cropped.std((2, 3)).min()) > 0
            assert float(collapsed.std((2, 3)).max()) < 1e-6  # the same everywhere


@pytest.mark.parametrize("terms", ["cropped", "collapsed"])
def test_a_model_of_one_term_trains_all_that_it_has(terms: str) -> None:
    model = build(small_spec(series_size=16, fusion=FusionConfig(terms=terms))).train()
    logits = run(model, batch([3, 2]))
    torch.autograd.backward([x.sum() for x in logits.values()])
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_levels_without_channels_are_passed_by() -> None:
    fusion = SatelliteFusion(4, (3, 0, 6), FusionConfig())
    assert isinstance(fusion.cropped[1], nn.Identity)
    features = [torch.zeros(1, 3, 8, 8), torch.zeros(1, 0, 4, 4), torch.zeros(1, 6, 2, 2)]
    fused = fusion(features, torch.rand(1, 4, 16, 16))
    assert [tuple(f.shape) for f in fused] == [tuple(f.shape) for f in features]
