import math

import numpy as np
import pytest
import torch

from vocseg.metrics import (
    Evaluation,
    all_background,
    bootstrap_interval,
    confusion_matrix,
    paper_inferred,
    scores_of,
)


def by_hand(predictions, targets, classes):
    """mIoU, pixel accuracy and IoU per class, counted pixel by pixel with NumPy alone."""
    counts = np.zeros((classes, classes), dtype=np.int64)
    for prediction, target in zip(predictions, targets, strict=True):
        for p, t in zip(prediction.ravel().tolist(), target.ravel().tolist(), strict=True):
            if t != 255:
                counts[t, p] += 1
    ious = []
    for label in range(classes):
        union = counts[label].sum() + counts[:, label].sum() - counts[label, label]
        ious.append(counts[label, label] / union if union else math.nan)
    present = [iou for iou in ious if not math.isnan(iou)]
    miou = sum(present) / len(present) if present else math.nan
    accuracy = np.trace(counts) / counts.sum() if counts.sum() else math.nan
    return miou, accuracy, ious


def evaluate(predictions, targets, classes):
    evaluation = Evaluation(classes)
    for index, (prediction, target) in enumerate(zip(predictions, targets, strict=True)):
        evaluation.update_image(torch.from_numpy(prediction), torch.from_numpy(target), index)
    return evaluation.compute()


@pytest.fixture
def images():
    """Images of unlike sizes, with void, class 3 absent from the truth and class 5 absent from both."""
    rng = np.random.default_rng(0)
    sizes = [(13, 17), (5, 40), (1, 1), (20, 3)]
    targets = [rng.choice([0, 1, 2, 4, 255], size) for size in sizes]
    predictions = [rng.integers(0, 5, size) for size in sizes]
    return predictions, targets, 6


def test_figures_equal_a_count_by_hand(images):
    result = evaluate(*images)
    miou, accuracy, ious = by_hand(*images)
    assert result.miou == pytest.approx(miou, abs=1e-6)
    assert result.pixel_accuracy == pytest.approx(accuracy, abs=1e-6)
    assert result.iou == pytest.approx(ious, abs=1e-6, nan_ok=True)
    assert math.isnan(result.iou[5])  # in neither
    assert result.iou[3] == 0  # predicted, never true


def test_matrices_derive_the_logged_figures(images):
    result = evaluate(*images)
    derived = scores_of(result.matrices.sum(0))
    assert derived["miou"] == pytest.approx(result.miou, abs=1e-6)
    assert derived["pixel_accuracy"] == pytest.approx(result.pixel_accuracy, abs=1e-6)
    assert result.matrices.shape == (4, 7, 6)
    assert result.matrices[:, -1].sum() == sum((target == 255).sum() for target in images[1])


def test_the_mean_over_the_split_is_not_the_mean_over_images(images):
    """Per-image averages are another number: this would fail if the figures were averaged per batch."""
    predictions, targets, classes = images
    per_image = [by_hand([p], [t], classes)[0] for p, t in zip(predictions, targets, strict=True)]
    assert abs(np.nanmean(per_image) - evaluate(*images).miou) > 1e-3


def test_all_void_has_no_score():
    result = evaluate([np.zeros((4, 4), int)], [np.full((4, 4), 255)], 3)
    assert math.isnan(result.miou)
    assert result.matrices.sum() == 16


def test_all_background_figures(images):
    predictions, targets, classes = images
    floor = evaluate(predictions, targets, classes).all_background()
    miou, accuracy, _ = by_hand([np.zeros_like(p) for p in predictions], targets, classes)
    assert floor["miou"] == pytest.approx(miou)
    assert floor["pixel_accuracy"] == pytest.approx(accuracy)


def test_matrices_come_in_the_lists_order():
    evaluation = Evaluation(2)
    for index in (2, 0, 1):
        evaluation.update_image(torch.zeros(1, index + 1).long(), torch.zeros(1, index + 1).long(), index)
    assert evaluation.compute().matrices[:, 0, 0].tolist() == [1, 2, 3]


def test_reset_forgets(images):
    evaluation = Evaluation(6)
    evaluation.update_image(torch.zeros(2, 2).long(), torch.ones(2, 2).long(), 0)
    evaluation.update_loss(torch.tensor(3.0), torch.tensor(2.0))
    assert evaluation.compute().loss == 1.5
    evaluation.reset()
    evaluation.update_image(torch.ones(2, 2).long(), torch.ones(2, 2).long(), 0)
    result = evaluation.compute()
    assert (result.miou, result.loss) == (1, 0)


def test_count_matrix_counts_void_in_its_own_row():
    matrix = confusion_matrix(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 0, 255]]), 2)
    assert matrix.tolist() == [[1, 1], [0, 0], [0, 1]]


def test_the_papers_protocol_counts_void_as_background_and_averages_over_sixteens():
    """18 images at 224x224: sixteen with a half of class 1 half found, then two whose void is called class 2."""
    evaluation = Evaluation(4)
    target, prediction = torch.zeros(224, 224).long(), torch.zeros(224, 224).long()
    target[:, :112] = 1
    prediction[:, :56] = 1
    for index in range(16):
        evaluation.update_image(prediction, target, index)
    for index in (16, 17):
        evaluation.update_image(torch.full((224, 224), 2), torch.full((224, 224), 255), index)
    result = evaluation.compute()
    # first block: background 2/3 (its half, and a quarter too many), class 1 1/2; second: background 0, class 2 0
    assert result.paper_inferred()["miou"] == pytest.approx(((2 / 3 + 1 / 2) / 2 + 0) / 2)
    assert result.paper_inferred()["pixel_accuracy"] == pytest.approx(16 * 0.75 / 18)
    # of record: void does not count, so class 2 occurs nowhere and all images are one
    assert result.miou == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert result.pixel_accuracy == pytest.approx(0.75)


def test_the_papers_protocol_squashes_to_224():
    """A photograph of 10x20 whose left half is class 1 is half class 1 at 224x224, too."""
    evaluation = Evaluation(2)
    target = torch.zeros(10, 20).long()
    target[:, :10] = 1
    evaluation.update_image(torch.zeros(10, 20).long(), target, 0)
    squashed = evaluation.compute().squashed[0]
    assert squashed.tolist() == [[224 * 112, 0], [224 * 112, 0], [0, 0]]


def test_all_background_under_both_protocols():
    """Two images, one quarter of class 1 each and one quarter void: worked out by hand."""
    evaluation = Evaluation(3)
    target = torch.zeros(224, 224).long()
    target[:112, :112], target[112:, 112:] = 1, 255
    for index in range(2):
        evaluation.update_image(torch.ones(224, 224).long(), target, index)
    result = evaluation.compute()
    assert result.all_background() == pytest.approx({"miou": (2 / 3 + 0) / 2, "pixel_accuracy": 2 / 3})
    inferred = paper_inferred(all_background(result.squashed))
    assert inferred == pytest.approx({"miou": (3 / 4 + 0) / 2, "pixel_accuracy": 3 / 4})


def test_no_images_have_no_paper_figures():
    assert math.isnan(paper_inferred(torch.zeros(0, 4, 3).long())["miou"])


def test_the_bootstrap_interval_holds_the_figure_and_repeats():
    rng = np.random.default_rng(0)
    evaluation = Evaluation(3)
    for index in range(30):
        target = rng.integers(0, 3, (12, 12))
        wrong = rng.random((12, 12)) < rng.random()
        prediction = np.where(wrong, rng.integers(0, 3, (12, 12)), target)
        evaluation.update_image(torch.from_numpy(prediction), torch.from_numpy(target), index)
    result = evaluation.compute()
    low, high = bootstrap_interval(result.matrices)
    assert low < result.miou < high
    assert (low, high) == bootstrap_interval(result.matrices)
    # the same images over and over leave nothing to chance
    constant = result.matrices[:1].repeat(30, 1, 1)
    assert bootstrap_interval(constant) == pytest.approx([scores_of(constant.sum(0))["miou"]] * 2)
