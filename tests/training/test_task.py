"""The task of a run: its confusion counts against the golden score, its losses' weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from flair2_exp.data.readers import to_classes
from flair2_exp.nomenclature import CLASSES_13, SCORED
from flair2_exp.score import confusion_matrix, iou, miou
from flair2_exp.training.task import SegmentationTask
from tests.golden_vectors import golden
from tests.training.helpers import Patches, build_task, loader, trainer

OTHER = 12
UNET = ("model=unet", "data=aerial_only")


@pytest.fixture(scope="module")
def tasks() -> dict[str, SegmentationTask]:
    """A task for each setting of `metric.other_pixels`."""
    return {word: build_task(*UNET, f"metric.other_pixels={word}") for word in ("keep", "drop")}


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    """The golden masks as a run reads them: (4, 128, 128) class indices."""
    masks = golden("metrics")["masks_1_to_19"]
    return np.stack([to_classes(mask.copy(), 13, "golden") for mask in masks])


@pytest.fixture(scope="module")
def predictions() -> np.ndarray:
    indices: np.ndarray = golden("metrics")["predictions_0_to_12"]
    return indices


def counts(task: SegmentationTask, truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """A run's counts of each patch, (B, C, C)."""
    pair = (torch.from_numpy(each).long() for each in (truth, prediction))
    return task.confusion(*pair).numpy()


def test_masks_are_read_as_the_baseline_reads_them(labels: np.ndarray) -> None:
    masks = golden("metrics")["masks_1_to_19"]
    assert set(np.unique(masks)) == set(range(1, 20))
    assert np.array_equal(labels[masks <= SCORED], masks[masks <= SCORED] - 1)
    assert (labels[masks > SCORED] == OTHER).all()


def test_counts_that_keep_other_give_the_published_score(
    tasks: dict[str, SegmentationTask], labels: np.ndarray, predictions: np.ndarray
) -> None:
    summed = counts(tasks["keep"], labels, predictions).sum(0)
    np.testing.assert_allclose(iou(summed)[:SCORED], golden("metrics")["iou_12"], rtol=1e-6)
    np.testing.assert_allclose(miou(summed), golden("metrics")["miou"], rtol=1e-6)


def test_keeping_counts_every_pixel_and_dropping_leaves_out_those_of_other_alone(
    tasks: dict[str, SegmentationTask], labels: np.ndarray, predictions: np.ndarray
) -> None:
    kept = counts(tasks["keep"], labels, predictions)
    dropped = counts(tasks["drop"], labels, predictions)
    assert (kept.sum((1, 2)) == labels[0].size).all()
    other = (labels == OTHER).sum((1, 2))
    assert other.all()
    assert np.array_equal(kept.sum((1, 2)) - dropped.sum((1, 2)), other)
    assert (dropped[:, OTHER] == 0).all()
    # Wrong predictions of "other" stay: they are misses of the class that is there.
    assert np.array_equal(dropped[:, :OTHER], kept[:, :OTHER])
    assert dropped[:, :OTHER, OTHER].sum() > 0
    # Predictions on pixels of "other" count as false positives in the baseline only.
    assert (iou(dropped.sum(0))[:SCORED] >= iou(kept.sum(0))[:SCORED]).all()
    assert miou(dropped.sum(0)) > miou(kept.sum(0))


class _Answers(nn.Module):
    """A network that predicts what it is shown."""

    main_head = "aerial"

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"aerial": functional.one_hot(image, 13).movedim(-1, 1).float()}


def test_testing_in_batches_gives_the_published_score(
    labels: np.ndarray, predictions: np.ndarray
) -> None:
    task = build_task(*UNET, "compat=reference")
    task.model = _Answers()  # type: ignore[assignment]
    task.log = lambda *_, **__: None  # type: ignore[assignment, method-assign]
    for first, last in ((0, 3), (3, 4)):
        batch = {
            "image": torch.from_numpy(predictions[first:last]).long(),
            "label": torch.from_numpy(labels[first:last]).long(),
            "patch_id": [f"IMG_{number}" for number in range(first, last)],
            "area": ["D004_2021/Z1_NN"] * (last - first),
        }
        task.test_step(batch, first)
    assert len(task.results) == 4
    np.testing.assert_allclose(miou(task.test_confusion()), golden("metrics")["miou"], rtol=1e-6)


BATCHES = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)).flatmap(
    lambda shape: st.tuples(
        *[arrays.arrays(np.int64, shape, elements=st.integers(0, OTHER)) for _ in range(2)]
    )
)


@given(BATCHES)
def test_a_runs_counts_are_those_of_the_reports(
    tasks: dict[str, SegmentationTask], pair: tuple[np.ndarray, np.ndarray]
) -> None:
    for word, left_out in (("keep", None), ("drop", OTHER)):
        ours = counts(tasks[word], *pair)
        expected = [
            confusion_matrix(truth, prediction, 13, drop_truth=left_out)
            for truth, prediction in zip(*pair, strict=True)
        ]
        assert np.array_equal(ours, np.stack(expected))


def test_the_satellite_class_weights_change_the_satellite_loss_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = {
        head: torch.randn(2, 13, 8, 8, generator=generator) for head in ("aerial", "satellite")
    }
    label = torch.randint(0, 13, (2, 8, 8), generator=generator)
    batch = {"label": label, "satellite_label": label.flip(1)}
    weights = torch.tensor([float(each.name != "other") for each in CLASSES_13])
    without_plowed = weights.clone()
    without_plowed[11] = 0
    for word, satellite_weights in (("as_aerial", weights), ("reference", without_plowed)):
        losses = build_task(*UNET, f"loss.satellite_class_weights={word}").loss(logits, batch)
        aerial = functional.cross_entropy(logits["aerial"], label, weights)
        satellite = functional.cross_entropy(logits["satellite"], label.flip(1), satellite_weights)
        torch.testing.assert_close(losses["aerial"], aerial)
        torch.testing.assert_close(losses["satellite"], satellite)
        torch.testing.assert_close(losses["total"], aerial + satellite)


def test_the_heads_weights_scale_their_part_of_the_total() -> None:
    logits = {head: torch.randn(1, 13, 4, 4) for head in ("aerial", "satellite")}
    label = torch.randint(0, OTHER, (1, 4, 4))
    task = build_task(*UNET, "loss.aerial=0.5", "loss.satellite=2")
    losses = task.loss(logits, {"label": label, "satellite_label": label})
    torch.testing.assert_close(losses["total"], 0.5 * losses["aerial"] + 2 * losses["satellite"])


def test_the_training_metrics_are_those_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    task, logged = build_task(*UNET, "optimizer.lr=0.5"), []
    monkeypatch.setattr(task, "log_dict", lambda means, **how: logged.append((means, how)))
    fit = trainer(max_epochs=1, limit_train_batches=1)
    losses: list[dict[str, Tensor]] = []
    step = task.training_step
    monkeypatch.setattr(task, "training_step", lambda *a: losses.append(step(*a)) or losses[-1])
    fit.fit(task, loader(2))
    (means, how), *_ = logged
    assert how["sync_dist"] is True
    assert means == {"train/loss": losses[0]["loss"], "train/lr": 0.5}


@pytest.mark.parametrize("loss", ["cross_entropy", "dice_cross_entropy"])
def test_the_loss_of_a_test_does_not_depend_on_the_batches(loss: str) -> None:
    task = build_task("model=unet", f"loss={loss}", "+loss.class_weights.deciduous=0.1")
    found = []
    for size in (1, 2, 3):
        batches = DataLoader(Patches(5), batch_size=size)
        found.append(trainer().test(task, batches, verbose=False)[0]["test/loss"])
    assert found == pytest.approx([found[0]] * 3, rel=1e-5)


@pytest.mark.parametrize("words", [UNET, ("model=utt", "metadata=on"), ("model=utae",)])
def test_what_tests_go_by_is_the_same_bits_whatever_the_batch(words: tuple[str, ...]) -> None:
    task = build_task(*words).eval()
    (whole,) = DataLoader(Patches(3), batch_size=3)
    with torch.inference_mode():
        together = task.evaluate(whole)
        for at in (2, 0, 1):
            other = {name: each[[at, 0]] if isinstance(each, Tensor) else [each[at], each[0]]
                     for name, each in whole.items()}  # fmt: skip
            apart = task.evaluate(other)
            for head, logits in together.items():
                assert torch.equal(apart[head][0], logits[at])
        plain = task(whole)
    for head, logits in together.items():
        assert torch.allclose(plain[head], logits, atol=1e-4)


def test_where_a_quirk_looks_at_the_batch_a_test_keeps_it_whole() -> None:
    task = build_task("model=utt", "compat=reference").eval()
    (whole,) = DataLoader(Patches(3), batch_size=3)
    with torch.inference_mode():
        together, plain = task.evaluate(whole), task(whole)
    for head, logits in together.items():
        assert torch.equal(plain[head], logits)
