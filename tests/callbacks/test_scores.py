"""Scores on request, in Python and on the command line."""

import io
import json

import lightning as L
import numpy as np
import pytest
import torch
from rich.console import Console

from vocseg import LinearHead, SegmentationTask, StridedEncoder, VOCDataModule, VocsegError
from vocseg.boundary import boundary_counts
from vocseg.callbacks import MoreScores
from vocseg.callbacks.results import result_table
from vocseg.data.synthetic import SYNTHETIC_CLASSES
from vocseg.inference import label_map, probability_map
from vocseg.run_folder import result_summary, write_image_scores

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture(scope="module")
def data(voc_root):
    return VOCDataModule(voc_root, class_names=SYNTHETIC_CLASSES, image_size=64, batch_size=3, num_workers=0)


def small_task():
    torch.manual_seed(0)
    return SegmentationTask(StridedEncoder(), LinearHead, class_names=SYNTHETIC_CLASSES).eval()


@pytest.fixture(scope="module")
def tested(data):
    """A task after a test with all scores, and what the test logged."""
    task = small_task()
    (logged,) = L.Trainer(callbacks=[MoreScores()], **QUIET).test(task, data, verbose=False)
    return task, logged


def test_the_scores_are_those_of_the_masks_and_probabilities_of_each_image(tested, data):
    task, logged = tested
    result, classes = task.results["test"], len(SYNTHETIC_CLASSES)
    counts, errors, pixels = [], np.zeros(15), 0
    for item in data.datasets["test"]:
        truth = item["original_mask"].numpy()
        with torch.no_grad():
            logits = task(data.on_after_batch_transfer({"image": item["image"][None]}, 0)["image"])[0]
        labels = label_map(logits, truth.shape).numpy()
        counts.append(boundary_counts(labels, truth, classes))
        confidence = probability_map(logits, truth.shape).amax(0).numpy()[truth != 255]
        right = (labels == truth)[truth != 255]
        for index in range(15):
            inside = (confidence > index / 15) & (confidence <= (index + 1) / 15)
            errors[index] += (right[inside].astype(float) - confidence[inside]).sum()
        pixels += right.size
    assert np.array_equal(result.boundary.counts, counts)
    assert result.calibration.ece == pytest.approx(np.abs(errors).sum() / pixels, abs=1e-6)
    assert result.calibration.pixels.sum() == pixels
    assert logged["test/boundary_miou"] == pytest.approx(result.boundary.miou)
    assert logged["test/ece"] == pytest.approx(result.calibration.ece)


def test_validation_has_them_and_other_scores_are_the_same(data):
    task, other = small_task(), small_task()
    L.Trainer(callbacks=[MoreScores(["boundary"])], **QUIET).validate(task, data, verbose=False)
    L.Trainer(**QUIET).validate(other, data, verbose=False)
    with_it, without = task.results["val"], other.results["val"]
    assert with_it.boundary.miou > 0
    assert with_it.calibration is without.boundary is without.calibration is None
    names = list(SYNTHETIC_CLASSES)
    summary = result_summary(with_it, names)
    assert summary.pop("boundary")["miou"] == with_it.boundary.miou
    assert summary == result_summary(without, names)


def test_plain_batches_have_them(data):
    task = small_task()
    masks = torch.zeros(2, 20, 30, dtype=torch.long)
    masks[:, 5:10, 5:25], masks[0, 0] = 1, 255
    loader = torch.utils.data.DataLoader([(torch.rand(3, 20, 30), mask) for mask in masks], batch_size=2)
    L.Trainer(callbacks=[MoreScores()], **QUIET).test(task, loader, verbose=False)
    assert task.results["test"].calibration.pixels.sum() == 2 * 20 * 30 - 30
    assert len(task.results["test"].boundary.counts) == 2


def test_tables_and_the_file_of_images_have_them(tested, tmp_path):
    result, names = tested[0].results["test"], list(SYNTHETIC_CLASSES)
    file = io.StringIO()
    Console(file=file, width=100).print(result_table(result, names, "Test"))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in file.getvalue().splitlines()]
    cells = {row[0]: row for row in rows if row}
    assert cells["class"][2] == "boundary IoU"
    assert cells["mIoU"][2] == f"{result.boundary.miou:.4f}"
    assert cells["background"][2] == f"{result.boundary.iou[0]:.4f}"
    assert cells["calibration error (ECE)"][1] == f"{result.calibration.ece:.4f}"
    assert f"{result.calibration.ece:.4f}" in str(result)
    path = tmp_path / "test_images.csv"
    per_image = result.boundary.miou_per_image()
    write_image_scores(path, result.matrices, names, ["a.jpg"], boundary_miou=per_image)
    lines = np.genfromtxt(path, delimiter=",", names=True, dtype=None, encoding=None)
    assert lines["boundary_miou"] == pytest.approx(per_image, rel=1e-5)


def test_a_task_that_returns_no_logits_is_refused(data):
    class Silent(SegmentationTask):
        def test_step(self, batch, batch_idx):
            super().test_step(batch, batch_idx)

    task = Silent(StridedEncoder(), LinearHead, class_names=SYNTHETIC_CLASSES)
    with pytest.raises(VocsegError, match="those of Silent return something else"):
        L.Trainer(callbacks=[MoreScores()], **QUIET).test(task, data, verbose=False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, fit_flags, succeed_in):
    folder = tmp_path_factory.mktemp("scores")
    succeed_in(folder, [*fit_flags, "--trainer.max_epochs", "1", "--previews.images", "0"])
    return folder / "lightning_logs/quickstart/version_0/checkpoints/best.ckpt"


def test_the_command_line_writes_and_prints_them(checkpoint, succeed_in, tmp_path):
    test, validate = (
        succeed_in(tmp_path, [command, "--ckpt_path", checkpoint, "--scores", "[boundary, calibration]"])
        for command in ("test", "validate")
    )
    for printed in (test, validate):
        assert "boundary IoU" in printed
        assert "calibration error" in printed
    scores = json.loads((checkpoint.parents[1] / "test.json").read_text())
    assert list(scores["boundary"]["iou"]) == list(SYNTHETIC_CLASSES)
    assert len(scores["calibration"]["pixels"]) == 15
    assert scores["date"].endswith("+00:00")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("[bondary]", "must be one of boundary, calibration; got 'bondary'. Did you mean 'boundary'?"),
        ("boundary", "scores must be a list, such as \"[boundary, calibration]\"; got 'boundary'."),
    ],
)
def test_wrong_scores_are_refused_in_one_line(given, message, checkpoint, vocseg):
    status, _, err = vocseg("test", "--ckpt_path", checkpoint, "--scores", given)
    assert status == 1
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["calibration", "calibration"], "scores has calibration twice"),
        ("boundary", "scores must be a list"),
        ({"boundary": 1}, "scores must be a list"),
        ([1], "must be one of boundary, calibration; got 1"),
    ],
)
def test_the_same_in_python(names, message):
    with pytest.raises(VocsegError, match=message):
        MoreScores(names)


def test_fit_has_no_such_option(vocseg):
    status, _, err = vocseg("fit", "--config", "quickstart", "--scores", "[boundary]")
    assert (status, err.strip()) == (1, "vocseg: There is no option 'scores'.")
