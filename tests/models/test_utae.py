from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from benchmarks import stock
from flair2_exp.config.model import UTAEConfig
from flair2_exp.models.aggregation import aggregate, segments
from flair2_exp.models.ltae import SequenceNorm, TemporalEncoder, date_code
from flair2_exp.models.utae import UTAE
from tests.golden_vectors import golden
from tests.models.helpers import SMALL, batch, golden_utae

ABSOLUTE = 1e-4  # the golden README's tolerance in evaluation mode


def _options(aggregation: Any) -> UTAEConfig:
    return replace(SMALL, aggregation=aggregation, normalise_padding=True)


def _golden(aggregation: str, kind: str) -> tuple[dict[str, Tensor], UTAE]:
    name = f"utae_{aggregation}_{kind}"
    arrays = golden(name)
    tensors = {n: torch.from_numpy(arrays[n]) for n in arrays.files if not n.startswith("sd/")}
    return tensors, golden_utae(name, aggregation)


CASES = list(itertools.product(("att_group", "att_mean", "mean"), ("full", "padded")))


@pytest.mark.parametrize(("aggregation", "kind"), CASES)
def test_maps_attention_and_logits_are_the_published_ones(aggregation: str, kind: str) -> None:
    arrays, model = _golden(aggregation, kind)
    with torch.no_grad():
        maps, attention = model(arrays["in/s2"], arrays["in/dates"])
        logits = model.classify(maps[-1])
    for level, found in enumerate(maps):
        torch.testing.assert_close(found, arrays[f"out/map{level}"], rtol=0, atol=ABSOLUTE)
    torch.testing.assert_close(logits, arrays["out/logits"], rtol=0, atol=ABSOLUTE)
    expected = arrays["out/attention"].permute(1, 2, 0, 3, 4)
    torch.testing.assert_close(attention, expected, rtol=0, atol=ABSOLUTE)


@pytest.mark.parametrize(("aggregation", "kind"), CASES)
def test_gradients_are_the_published_ones(aggregation: str, kind: str) -> None:
    """In float64: those of stock parts, and those of the vectors, which are float32.

    Where the input of a ReLU is zero but for rounding, its side decides the gradient around it: in
    one frame of a golden file (`mean`, padded) 136 of 432,000 values are up to 5e-3 of the largest
    off, 3e-4 of the gradient's norm. Ten such places are allowed.
    """
    arrays, model = _golden(aggregation, kind)
    model = model.double()
    series, days = arrays["in/s2"].double().requires_grad_(), arrays["in/dates"]
    padding = (series == 0).flatten(2).all(2)
    gradient, of_stock = (
        torch.autograd.grad(maps[-1].square().mean(), series)[0]
        for maps in (model(series, days).maps, stock.utae_maps(model, series, days, padding))
    )
    published = arrays["out/grad_s2"].double()
    largest = float(published.abs().max())
    torch.testing.assert_close(gradient, of_stock, rtol=0, atol=1e-6 * largest)
    error = gradient - published
    assert (error.abs() > 1e-4 * largest).double().mean() <= 1e-3
    assert error.norm() <= 3e-3 * published.norm()


@pytest.mark.parametrize("normalise_padding", [True, False])
@pytest.mark.parametrize("aggregation", ["att_group", "att_mean", "mean"])
def test_packing_and_passes_give_what_stock_parts_give(
    aggregation: str, normalise_padding: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flair2_exp.models.utae._BYTES_A_PASS", 5 * 4 * 16 * 16 * 16)  # 5 frames
    torch.manual_seed(0)
    options = replace(_options(aggregation), normalise_padding=normalise_padding)
    model = UTAE(options).eval()
    inputs = batch([7, 3, 12])
    series, days, padding = inputs["series"], inputs["days"], inputs["padding"]
    with torch.no_grad():
        found = model(series, days, padding).maps
        expected = stock.utae_maps(model, series, days, padding)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalise_padding", [True, False])
@pytest.mark.parametrize("aggregation", ["att_group", "att_mean", "mean"])
@pytest.mark.parametrize("lengths", [[7, 3, 12], [5, 5], [4, 0]])
def test_without_packing_the_results_are_the_same(
    lengths: list[int], aggregation: str, normalise_padding: bool
) -> None:
    torch.manual_seed(0)
    model = UTAE(replace(_options(aggregation), normalise_padding=normalise_padding)).eval()
    inputs = batch(lengths)
    series, days, padding = inputs["series"], inputs["days"], inputs["padding"]
    with torch.no_grad():
        packed = model(series, days, padding)
        model.packs = False
        whole = model(series + padding[:, :, None, None, None] * 0.5, days, padding)
    for ours, theirs in zip(whole.maps, packed.maps, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole.attention, packed.attention, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_recomputed_parts_are_those_of_stock_parts(checkpointing: bool) -> None:
    torch.manual_seed(0)
    model = UTAE(replace(SMALL, checkpointing=checkpointing)).double().eval()
    inputs = batch([4, 2])
    series, days, padding = inputs["series"].double(), inputs["days"], inputs["padding"]
    gradients = []
    for maps in (model(series, days, padding).maps, stock.utae_maps(model, series, days, padding)):
        gradients.append(torch.autograd.grad(maps[-1].square().sum(), list(model.parameters())))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_padded_frames_are_never_computed() -> None:
    model = UTAE(SMALL).eval()
    seen: list[int] = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    inputs = batch([5, 1, 3])
    with torch.no_grad():
        model(inputs["series"], inputs["days"], inputs["padding"])
    assert sum(seen) == 9


def test_padding_is_told_from_frames_that_are_zero_everywhere() -> None:
    torch.manual_seed(0)
    model = UTAE(SMALL).eval()
    inputs = batch([5, 3])
    with torch.no_grad():
        given = model(inputs["series"], inputs["days"], inputs["padding"]).maps[-1]
        inferred = model(inputs["series"], inputs["days"]).maps[-1]
    torch.testing.assert_close(given, inferred, rtol=0, atol=0)


@pytest.mark.parametrize("reference", [False, True])
def test_more_padding_changes_a_sample_only_with_the_reference_setting(reference: bool) -> None:
    torch.manual_seed(0)
    model = UTAE(replace(SMALL, normalise_padding=reference)).eval()
    short, long = batch([4]), batch([4])
    long["series"] = functional.pad(long["series"], (0, 0) * 3 + (0, 6))
    long["days"] = functional.pad(long["days"], (0, 6))
    with torch.no_grad():
        a = model(short["series"], short["days"]).maps[-1]
        b = model(long["series"], long["days"]).maps[-1]
    change = float((a - b).abs().max())
    assert change > 1e-3 if reference else change < 1e-5


@pytest.mark.parametrize("lengths", [[0, 3], [0]])
def test_a_series_without_a_real_frame_gives_finite_maps(lengths: list[int]) -> None:
    inputs = batch([max(length, 2) for length in lengths])
    for index, length in enumerate(lengths):
        inputs["series"][index, length:] = 0
        inputs["padding"][index, length:] = True
    for aggregation in ("att_group", "mean"):
        model = UTAE(replace(_options(aggregation), normalise_padding=False)).eval()
        maps = model(inputs["series"], inputs["days"], inputs["padding"]).maps
        assert maps[-1].isfinite().all()


@pytest.mark.parametrize(("size", "dates"), [(16, 1), (24, 120), (112, 2)])
def test_sizes_and_lengths_of_series(size: int, dates: int) -> None:
    inputs = batch([dates], size=size)
    with torch.no_grad():
        maps, attention = UTAE(SMALL, classes=19).eval()(inputs["series"], inputs["days"])
    assert [m.shape[-1] for m in maps] == [size // 8, size // 4, size // 2, size]
    assert attention.shape == (1, dates, 4, size // 8, size // 8)
    torch.testing.assert_close(attention.sum(1), torch.ones_like(attention[:, 0]))


@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    size=st.integers(1, 12),
    mode=st.sampled_from(["att_group", "att_mean", "mean"]),
)
@settings(max_examples=25, deadline=None)
def test_aggregation_over_any_cut_into_passes_is_a_plain_loop_over_frames(
    counts: list[int], size: int, mode: str
) -> None:
    total = sum(counts)
    generator = torch.Generator().manual_seed(total)
    maps = torch.rand(total, 4, 4, 4, generator=generator)
    attention = torch.rand(total, 2, 4, 4, generator=generator)
    found = aggregate(
        torch.split(maps, size) if total else (maps,),
        attention,
        segments(counts, size),
        len(counts),
        mode,
    )
    frame = 0
    for sample, count in enumerate(counts):
        expected = torch.zeros(4, 4, 4)
        for _ in range(count):
            for channel in range(4):
                weight = attention[frame].mean(0)
                if mode == "att_group":
                    weight = attention[frame, channel // 2]
                if mode == "mean":
                    weight = torch.full((4, 4), 1 / count)
                expected[channel] += weight * maps[frame, channel]
            frame += 1
        torch.testing.assert_close(found[sample], expected)


def test_the_date_code_is_the_papers_formula() -> None:
    days = torch.tensor([[-134, 0, 1, 230]])
    code = date_code(days, 16)
    for t, i in itertools.product(range(4), range(16)):
        angle = float(days[0, t]) / 1000 ** (2 * (i // 2) / 16)
        value = math.sin(angle) if i % 2 == 0 else math.cos(angle)
        assert code[0, t, i] == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("where", ["days", "dtype", "default"])
def test_the_date_code_is_as_precise_as_what_asks_for_it(where: str) -> None:
    wide = torch.float64
    days = torch.tensor([230], dtype=wide if where == "days" else torch.int64)
    before = torch.get_default_dtype()
    torch.set_default_dtype(wide if where == "default" else before)  # as a run in 64-true does
    try:
        code = date_code(days, 4, wide if where == "dtype" else None)
    finally:
        torch.set_default_dtype(before)
    angle = 230 / 1000**0.5
    exact = [math.sin(230), math.cos(230), math.sin(angle), math.cos(angle)]
    assert code[0].tolist() == pytest.approx(exact, abs=1e-12)
    assert date_code(days.bfloat16(), 4).dtype == torch.float32


@torch.no_grad()
def test_a_run_in_64_bits_codes_dates_in_64_bits() -> None:
    """With one date, and nothing of its features, what is attended to is the date's code."""
    encoder = TemporalEncoder(32, heads=4, d_model=64, d_k=4, normalise_padding=False)
    encoder = encoder.double().eval()
    encoder.project.weight.zero_()
    encoder.project.bias.zero_()
    attended: list[Tensor] = []
    encoder.out.register_forward_pre_hook(lambda _, inputs: attended.append(inputs[0]))
    encoder(torch.zeros(1, 1, 32, 1, 1, dtype=torch.float64), torch.tensor([[230]]), None)
    angle = 230 / 1000 ** (2 / 16)
    exact = [math.sin(230), math.cos(230), math.sin(angle), math.cos(angle)]
    assert attended[0][0, :4].tolist() == pytest.approx(exact, abs=1e-12)


def test_a_sequence_is_normalised_over_its_real_dates_alone() -> None:
    norm = SequenceNorm(2, 4, padding_counts=False)
    x = torch.rand(1, 1, 5, 4)
    x[:, :, 3:] = 0
    real = torch.tensor([[True, True, True, False, False]])
    found = norm(x, real)[0, 0, :3].detach().numpy()
    for group in (slice(0, 2), slice(2, 4)):
        values = x[0, 0, :3, group].numpy()
        expected = (values - values.mean()) / np.sqrt(values.var() + norm.eps)
        np.testing.assert_allclose(found[:, group], expected, atol=1e-5)


def test_the_published_sizes_are_the_defaults() -> None:
    with torch.device("meta"):
        model = UTAE(UTAEConfig(), classes=13)
    assert model.temporal.query.shape == (16, 4)
    assert model.temporal.project.weight.shape == (256, 128)
    assert model.output is not None
    assert len(list(model.output.parameters())) == 8
