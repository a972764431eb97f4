"""The evaluation metric against counts by hand, torchmetrics' own classes and dense implementations."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from vocseg import SegmentationTask, SkipDecoder, StridedEncoder
from vocseg.confusion import confusion_matrix, iou_of, scores_of
from vocseg.metrics import SegmentationMetric


def by_hand(predictions, targets, classes):
    """mIoU, pixel accuracy, mean class accuracy and IoU per class, counted pixel by pixel with NumPy alone."""
    counts = np.zeros((classes, classes), dtype=np.int64)
    for prediction, target in zip(predictions, targets, strict=True):
        for p, t in zip(prediction.ravel().tolist(), target.ravel().tolist(), strict=True):
            if t != 255:
                counts[t, p] += 1
    ious, recalls = [], []
    for label in range(classes):
        union = counts[label].sum() + counts[:, label].sum() - counts[label, label]
        ious.append(counts[label, label] / union if union else math.nan)
        if counts[label].sum():
            recalls.append(counts[label, label] / counts[label].sum())
    present = [iou for iou in ious if not math.isnan(iou)]
    miou = sum(present) / len(present) if present else math.nan
    accuracy = np.trace(counts) / counts.sum() if counts.sum() else math.nan
    return miou, accuracy, sum(recalls) / len(recalls) if recalls else math.nan, ious


def metric_of(predictions, targets, classes):
    """A metric that was updated with one image at a time."""
    metric = SegmentationMetric(classes)
    for index, (prediction, target) in enumerate(zip(predictions, targets, strict=True)):
        metric.update([torch.from_numpy(prediction)], [torch.from_numpy(target)], [index])
    return metric


def evaluate(predictions, targets, classes):
    return metric_of(predictions, targets, classes).compute()


def torchmetrics_scores(predictions, targets, classes):
    """The scores of torchmetrics' ordinary classes, updated with pixels."""
    common = {"num_classes": classes, "ignore_index": 255}
    metrics = {
        "miou": MulticlassJaccardIndex(average="macro", **common),
        "iou": MulticlassJaccardIndex(average="none", zero_division=math.nan, **common),
        "pixel_accuracy": MulticlassAccuracy(average="micro", **common),
        "mean_accuracy": MulticlassAccuracy(average="macro", **common),
    }
    for prediction, target in zip(predictions, targets, strict=True):
        for metric in metrics.values():
            metric.update(torch.from_numpy(prediction)[None].long(), torch.from_numpy(target)[None].long())
    return {name: metric.compute() for name, metric in metrics.items()}


def random_images(seed, number, classes, labels, void=True):
    """Label maps of different sizes; targets with only ``labels`` and, perhaps, void, of which two thirds are found."""
    rng = np.random.default_rng(seed)
    predictions, targets = [], []
    for _ in range(number):
        size = tuple(rng.integers(1, 30, 2))
        target = rng.choice([*labels, 255] if void else labels, size)
        guess = rng.integers(0, classes, size)
        predictions.append(np.where((rng.random(size) < 2 / 3) & (target != 255), target, guess))
        targets.append(target)
    return predictions, targets, classes


def same(first, second):
    """Whether two ConfusionMatrices have equal arrays of equal types."""
    pairs = zip(first.to_arrays().values(), second.to_arrays().values(), strict=True)
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in pairs)


@pytest.fixture
def images():
    """Images of different sizes, with void, class 3 absent from the targets and class 5 absent from both."""
    rng = np.random.default_rng(0)
    sizes = [(13, 17), (5, 40), (1, 1), (20, 3)]
    targets = [rng.choice([0, 1, 2, 4, 255], size) for size in sizes]
    predictions = [rng.integers(0, 5, size) for size in sizes]
    return predictions, targets, 6


def test_scores_equal_a_count_by_hand(images):
    result = evaluate(*images)
    miou, accuracy, mean_accuracy, ious = by_hand(*images)
    assert result.miou == pytest.approx(miou, abs=1e-6)
    assert result.pixel_accuracy == pytest.approx(accuracy, abs=1e-6)
    assert result.mean_accuracy == pytest.approx(mean_accuracy, abs=1e-6)
    assert result.iou == pytest.approx(ious, abs=1e-6, nan_ok=True)
    assert math.isnan(result.iou[5])  # in neither
    assert result.iou[3] == 0  # predicted, never true


@pytest.mark.parametrize(
    ("number", "classes", "labels", "void"),
    [
        (8, 5, [0, 1, 2, 3, 4], True),
        (8, 5, [0, 1, 2, 3, 4], False),
        (8, 21, [0, 3, 20], True),  # classes 1, 2, ... are predicted but never true
        (1, 4, [0, 2], True),
        (3, 2, [0], True),
        (3, 3, [], True),  # all void
    ],
    ids=["all classes", "no void", "absent classes", "one image", "background only", "all void"],
)
def test_scores_equal_torchmetrics_updated_with_pixels(number, classes, labels, void):
    predictions, targets, classes = random_images(1, number, classes, labels, void)
    data = predictions, targets, classes + 1  # and a class that occurs in neither prediction nor target
    result, expected = evaluate(*data), torchmetrics_scores(*data)
    assert result.miou == pytest.approx(float(expected["miou"]), abs=1e-6, nan_ok=True)
    assert result.iou == pytest.approx(expected["iou"].tolist(), abs=1e-6, nan_ok=True)
    if labels:
        assert result.pixel_accuracy == pytest.approx(float(expected["pixel_accuracy"]), abs=1e-6)
    else:  # where torchmetrics answers 0
        assert math.isnan(result.miou)
        assert math.isnan(result.pixel_accuracy)
        assert math.isnan(result.mean_accuracy)


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, 2]], ids=["all classes occur", "two classes occur"])
def test_mean_accuracy_is_the_mean_recall_of_the_classes_in_the_targets(labels):
    data = random_images(2, 5, 4, labels)
    result = evaluate(*data)
    assert result.mean_accuracy == pytest.approx(by_hand(*data)[2], abs=1e-9)
    if len(labels) == 4:  # torchmetrics averages over the predicted classes as well
        assert result.mean_accuracy == pytest.approx(float(torchmetrics_scores(*data)["mean_accuracy"]), abs=1e-6)


def test_matrices_derive_the_logged_scores(images):
    result = evaluate(*images)
    derived = scores_of(result.matrices.total())
    for name, score in derived.items():
        assert score == pytest.approx(getattr(result, name), abs=1e-6)
    assert iou_of(result.matrices.total()) == pytest.approx(result.iou, abs=1e-6, nan_ok=True)
    assert len(result.matrices) == 4
    assert result.matrices.total()[-1].sum() == sum((target == 255).sum() for target in images[1])


def test_the_score_of_a_split_is_not_the_mean_of_its_images(images):
    """Averages over images or batches are different numbers: this would fail if they were computed."""
    predictions, targets, classes = images
    per_image = [by_hand([p], [t], classes)[0] for p, t in zip(predictions, targets, strict=True)]
    assert abs(np.nanmean(per_image) - evaluate(*images).miou) > 1e-3


def test_void_pixels_are_counted_but_have_no_score():
    result = evaluate([np.zeros((4, 4), int)], [np.full((4, 4), 255)], 3)
    assert result.matrices.total().sum() == 16
    assert np.isnan(result.matrices.miou_per_image()).tolist() == [True]
    assert all(math.isnan(score) for score in result.all_background().values())


def test_all_background_scores(images):
    predictions, targets, classes = images
    floor = evaluate(predictions, targets, classes).all_background()
    miou, accuracy, mean_accuracy, _ = by_hand([np.zeros_like(p) for p in predictions], targets, classes)
    assert floor["miou"] == pytest.approx(miou)
    assert floor["pixel_accuracy"] == pytest.approx(accuracy)
    assert floor["mean_accuracy"] == pytest.approx(mean_accuracy)


def test_a_batch_counts_as_its_images_do_one_by_one(images):
    predictions, targets, classes = images
    metric = SegmentationMetric(classes)
    metric.update([], [], [])
    metric.update([torch.from_numpy(p) for p in predictions], [torch.from_numpy(t) for t in targets], range(4))
    assert same(metric.compute().matrices, evaluate(*images).matrices)
    assert metric.images_seen == 4
    with pytest.raises(ValueError, match="zip"):
        metric.update([torch.zeros(1, 1).long()], [torch.zeros(1, 1).long()], [])


def test_matrices_are_in_the_order_of_the_list():
    metric = SegmentationMetric(2)
    for index in (20, 0, 3):
        metric.update([torch.zeros(1, index + 1).long()], [torch.zeros(1, index + 1).long()], [index])
    assert [int(matrix[0, 0]) for matrix in metric.compute().matrices] == [1, 4, 21]


def test_an_image_that_is_added_twice_counts_once():
    """As samplers do it that pad the shares of several processes; the last one counts."""
    metric = SegmentationMetric(3)
    target = torch.tensor([[0, 1, 2, 255]])
    metric.update([torch.tensor([[0, 0, 0, 0]]), torch.tensor([[0, 1, 2, 0]])], [target, target], [4, 1])
    metric.update([torch.tensor([[0, 1, 1, 0]])], [target], [4])
    matrices = metric.compute().matrices
    assert len(matrices) == 2
    assert matrices[0].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert matrices[1].tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_reset_forgets_everything():
    metric = SegmentationMetric(6)
    metric.update([torch.zeros(2, 2).long()], [torch.ones(2, 2).long()], [0])
    metric.update_loss(torch.tensor(3.0), torch.tensor(2.0))
    assert metric.compute().loss == 1.5
    metric.update_loss(torch.tensor(9.0), torch.tensor(2.0))
    assert metric.compute().loss == 3  # not the value of the call before
    metric.reset()
    assert metric.images_seen == 0
    metric.update([torch.ones(2, 2).long()], [torch.ones(2, 2).long()], [0])
    result = metric.compute()
    assert (result.miou, result.loss, len(result.matrices)) == (1, 0, 1)


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_without_images_every_score_is_nan():
    result = SegmentationMetric(3).compute()
    assert (len(result.matrices), result.loss) == (0, 0)
    assert all(math.isnan(score) for score in (result.miou, result.pixel_accuracy, result.mean_accuracy, *result.iou))
    assert all(math.isnan(score) for score in result.all_background().values())


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda metric: pickle.loads(pickle.dumps(metric)), lambda metric: metric.to("cpu")],
    ids=["deepcopied", "pickled", "moved"],
)
def test_a_metric_keeps_its_counts(duplicate, images):
    predictions, targets, classes = images
    metric = metric_of(predictions[:2], targets[:2], classes)
    metric.update_loss(torch.tensor(6.0), torch.tensor(2.0))
    other = duplicate(metric)
    pairs = zip(predictions[2:], targets[2:], strict=True)
    for index, (prediction, target) in enumerate(pairs, start=2):
        other.update([torch.from_numpy(prediction)], [torch.from_numpy(target)], [index])
    assert other.compute().loss == 3
    assert same(other.compute().matrices, evaluate(*images).matrices)
    assert other is metric or len(metric.compute().matrices) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_metric_on_a_gpu_has_the_scores_of_the_cpu(images):
    predictions, targets, classes = images
    metric = SegmentationMetric(classes).to("cuda")
    pairs = zip(predictions, targets, strict=True)
    for index, (prediction, target) in enumerate(pairs):
        metric.update([torch.from_numpy(prediction).cuda()], [torch.from_numpy(target).cuda()], [index])
        metric.update_loss(torch.tensor(3.0, device="cuda"), torch.tensor(2.0, device="cuda"))
    result, expected = metric.compute(), evaluate(*images)
    assert same(result.matrices, expected.matrices)
    assert (result.miou, result.loss) == (expected.miou, 1.5)


def test_the_metrics_are_registered_with_the_task_and_not_saved():
    task = SegmentationTask(StridedEncoder(widths=(4,)), SkipDecoder, ["background", "a"])
    children = dict(task.named_modules())
    for split in ("val", "test"):
        metric = children[f"metrics.{split}"]
        assert isinstance(metric, SegmentationMetric)
        assert set(metric.metric_state) == {"images", "cells", "counts", "losses"}
        metric.update([torch.zeros(2, 2).long()], [torch.zeros(2, 2).long()], [0])
        assert metric.metric_state["cells"]
    assert not [name for name in task.state_dict() if name.startswith("metrics")]


def test_a_result_prints_as_a_table_with_the_names_of_the_classes():
    metric = SegmentationMetric(2, ["background", "cat"])
    metric.update([torch.zeros(2, 2, dtype=torch.long)], [torch.tensor([[0, 0], [0, 1]])], [0])
    metric.update_loss(torch.tensor(2.0), torch.tensor(4.0))
    lines = str(metric.compute()).splitlines()
    assert lines[0].split() == ["1", "images", "score", "all", "background"]
    assert lines[1].split() == ["mIoU", "0.3750", "0.3750"]
    assert lines[-1].split() == ["IoU", "cat", "0.0000"]


def test_the_states_of_many_batches_are_few_tensors():
    metric = SegmentationMetric(3)
    generator = torch.Generator().manual_seed(0)
    pairs = [torch.randint(0, 3, (2, 4, 4), generator=generator) for _ in range(300)]
    for index, (prediction, target) in enumerate(pairs):
        metric.update([prediction], [target], [index])
        metric.update_loss(torch.tensor(float(index)), torch.tensor(2.0))
    assert max(len(state) for state in (metric.images, metric.cells, metric.counts, metric.losses)) < 15
    result = metric.compute()
    total = sum(confusion_matrix(prediction, target, 3) for prediction, target in pairs)
    assert np.array_equal(result.matrices.total(), total.numpy())
    assert np.array_equal(result.matrices[7], confusion_matrix(*pairs[7], 3).numpy())
    assert result.loss == sum(range(300)) / 600
