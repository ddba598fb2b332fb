from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from benchmarks import stock
from flair2_exp.config.model import FusionConfig
from flair2_exp.errors import ModelError
from flair2_exp.models.registry import NetworkSpec, build_network, count_parameters
from flair2_exp.models.utt import UTT
from tests.models.helpers import batch, build, run, small_spec, spec_of


@pytest.mark.parametrize(
    ("name", "metadata", "count"),
    [("unet", None, 24_444_381), ("utt", None, 27_254_744), ("utt", "rows", 27_260_296)],
)
def test_parameter_counts_are_the_published_ones(
    name: str, metadata: str | None, count: int
) -> None:
    with torch.device("meta"):
        assert count_parameters(build_network(spec_of(name, metadata=metadata))) == count


@pytest.mark.parametrize(
    ("encoder", "channels", "classes", "patch"),
    [
        ("resnet18", 5, 13, 64),
        ("resnext50_32x4d", 4, 19, 64),
        ("efficientnet-b0", 3, 13, 96),
        ("mit_b0", 5, 19, 128),
    ],
)
def test_encoders_bands_classes_and_patch_sizes(
    encoder: str, channels: int, classes: int, patch: int
) -> None:
    spec = small_spec(
        encoder=encoder, bands=channels, classes=classes, patch_size=patch, metadata="channels"
    )
    model = build(spec).train()
    inputs = batch([2, 3], patch=patch)
    inputs["image"] = inputs["image"][:, :channels] if channels < 5 else inputs["image"]
    logits = run(model, inputs)
    assert {n: tuple(x.shape) for n, x in logits.items()} == dict.fromkeys(
        ("aerial", "satellite"), (2, classes, patch, patch)
    )
    torch.autograd.backward([x.square().mean() for x in logits.values()])
    ours = [p for n, p in model.named_parameters() if not n.startswith("unet.encoder.")]
    assert all(p.grad is not None for p in ours if p.requires_grad)


def test_sixteen_tensors_are_frozen_and_no_other_lacks_a_gradient() -> None:
    model = build(small_spec()).train()
    logits = run(model, batch([2, 3]))
    torch.autograd.backward([x.sum() for x in logits.values()])
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert len(without) == 16
    assert {name.split(".")[0] for name in without} == {"utae", "fusion"}
    assert without == [name for name, p in model.named_parameters() if not p.requires_grad]


@pytest.mark.parametrize(
    ("size", "lengths"),
    [
        (16, [1]),  # four pixels of one date, one sample: the least that a BatchNorm can train on
        (16, [120, 1]),
        (24, [2, 1]),
        (40, [1, 120]),
        (112, [1]),
        (112, [2, 1]),
        (112, [120]),
    ],
)
@pytest.mark.parametrize("reference", [False, True])
def test_series_of_every_size_and_length_train_u_tt(
    size: int, lengths: list[int], reference: bool
) -> None:
    spec = small_spec(series_size=size, metadata="channels")
    if reference:
        spec = replace(
            spec,
            utae=replace(spec.utae, normalise_padding=True),
            fusion=FusionConfig(collapsed="first_sample"),
        )
    model = build(spec).train()
    logits = run(model, batch(lengths, size=size))
    assert {x.shape for x in logits.values()} == {(len(lengths), 13, 64, 64)}
    label = torch.randint(0, 13, (len(lengths), 64, 64))
    losses = [functional.cross_entropy(x, label) for x in logits.values()]
    torch.autograd.backward(losses)
    assert torch.stack(losses).isfinite().all()
    trained = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert all(grad is not None and grad.isfinite().all() for grad in trained.values())
    # A single date is attended to whatever its score: queries and keys have nothing to learn there.
    idle = {n for n, grad in trained.items() if grad is not None and not grad.any()}
    assert all(n.startswith(("utae.temporal.query", "utae.temporal.key")) for n in idle)
    assert ("utae.temporal.query" in idle) == (max(lengths) == 1)


@pytest.mark.parametrize("name", ["unet", "utae", "utt"])
def test_each_model_gives_its_main_head(name: str) -> None:
    model = build(small_spec(name))
    with torch.no_grad():
        logits = run(model, batch([3, 2]))
    assert logits[model.main_head].shape == (2, 13, 64, 64)
    assert list(logits) == {"unet": ["aerial"], "utae": ["satellite"]}.get(
        name, ["aerial", "satellite"]
    )


def test_u_tae_alone_takes_patches_that_no_encoder_could_halve() -> None:
    with torch.no_grad():
        logits = run(build(small_spec("utae", patch_size=72)), batch([3, 2]))
    assert logits["satellite"].shape == (2, 13, 72, 72)


@pytest.mark.parametrize("metadata", ["rows", "channels"])
def test_u_tt_is_what_stock_parts_make(metadata: str) -> None:
    spec = small_spec(metadata=metadata, encoder="resnet18")
    model = build(spec)
    assert isinstance(model, UTT)
    inputs = batch([3, 6])
    with torch.no_grad():
        outputs, expected = run(model, inputs), stock.utt_logits(model, **inputs)
    for head, logits in outputs.items():
        torch.testing.assert_close(logits, expected[head], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["unet", "utt"])
def test_patches_that_an_encoder_cannot_halve_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match=r"Patches of 100 px do not suit .* multiple of 32"):
        build_network(small_spec(name, patch_size=100))


def test_a_network_with_metadata_needs_them() -> None:
    with pytest.raises(ValueError, match="needs `metadata`"):
        build(small_spec("unet", metadata="rows"))(image=torch.rand(1, 5, 64, 64))


def _losses(spec: NetworkSpec, *, bf16: bool = False) -> list[float]:
    """Losses of three steps, in which options may differ by no more than rounding."""
    model = build(spec).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0
    model.accelerate(spec.model, "aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    inputs = batch([3, 5])
    label = torch.randint(0, 13, (2, 64, 64), generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = run(model, inputs)
        loss = torch.stack(
            [functional.cross_entropy(x.float(), label) for x in logits.values()]
        ).sum()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_channels_last_trains_to_the_same_losses() -> None:
    last = small_spec(encoder="resnet18", channels_last=True)
    assert _losses(last) == pytest.approx(_losses(small_spec(encoder="resnet18")), rel=1e-4)


def test_channels_last_moves_with_the_model_to_its_device() -> None:
    """A run accelerates its model before the trainer moves it."""
    spec = small_spec("unet", encoder="resnet18", channels_last=True)
    model = build(spec)
    model.accelerate(spec.model)
    kernels = [p for p in model.to("meta").parameters() if p.dim() == 4 and p.shape[-1] > 1]
    assert kernels
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


def test_checkpointing_trains_to_the_same_losses() -> None:
    spec = small_spec(encoder="resnet18")
    repeating = replace(spec, utae=replace(spec.utae, checkpointing=True))
    assert _losses(repeating) == pytest.approx(_losses(spec), rel=1e-4)


def test_bf16_trains_to_losses_within_its_precision() -> None:
    spec = small_spec(encoder="resnet18")
    assert _losses(spec, bf16=True) == pytest.approx(_losses(spec), rel=2e-2)


def test_recomputing_counts_no_batch_twice() -> None:
    """A BatchNorm run again in the backward pass would move its running statistics again."""
    model = build(small_spec()).train()
    logits = run(model, batch([2, 3]))
    torch.autograd.backward([x.sum() for x in logits.values()])
    counts = {
        int(value)
        for name, value in model.state_dict().items()
        if name.endswith("num_batches_tracked") and not name.startswith("utae.output")
    }
    assert counts == {1}


def test_a_compiled_model_trains_to_the_same_losses() -> None:
    """Traced and differentiated by the compiler, run without generating code (minutes here)."""
    compiled = _losses(small_spec(encoder="resnet18", compile=True))
    assert compiled == pytest.approx(_losses(small_spec(encoder="resnet18")), rel=1e-4)


@pytest.mark.thorough
def test_compiled_code_gives_the_same_logits() -> None:
    spec = small_spec("unet", compile=True)
    model, image = build(spec), batch([1])["image"]
    with torch.no_grad():
        expected = model(image)["aerial"]
        model.accelerate(spec.model)
        torch.testing.assert_close(model(image)["aerial"], expected, rtol=1e-4, atol=1e-4)
