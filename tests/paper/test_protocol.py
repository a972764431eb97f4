"""The paper's evaluation protocol, and that runs without it know nothing of it."""

import csv
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import vocseg
from vocseg.confusion import ConfusionMatrices, confusion_matrix, scores_of
from vocseg.data.files import read_mask
from vocseg.data.synthetic import SYNTHETIC_CLASSES, write_tree
from vocseg.lightning_cli import run
from vocseg.paper.protocol import PaperProtocol, paper_inferred, resize_labels, void_as_background
from vocseg.paper.rows import PROTOCOL

CLASSES = len(SYNTHETIC_CLASSES)
FULL = 224 * 224


def matrices_of(predictions, targets, classes):
    """Confusion matrices of label maps at 224x224."""
    pairs = zip(predictions, targets, strict=True)
    dense = [confusion_matrix(prediction, target, classes).numpy() for prediction, target in pairs]
    return ConfusionMatrices.from_dense(np.stack(dense))


def test_void_counts_as_background_and_iou_is_averaged_over_groups_of_16():
    """Half of each of 16 images is class 1, and half of that is found; the void of two more is predicted as class 2."""
    target, prediction = torch.zeros(224, 224).long(), torch.zeros(224, 224).long()
    target[:, :112] = 1
    prediction[:, :56] = 1
    twos, void = torch.full((224, 224), 2), torch.full((224, 224), 255)
    matrices = matrices_of([prediction] * 16 + [twos] * 2, [target] * 16 + [void] * 2, 4)
    scores = paper_inferred(matrices)
    # first group: background 2/3 (intersection 1/2, union 3/4), class 1 1/2; second group: background 0, class 2 0
    assert scores["miou"] == pytest.approx(((2 / 3 + 1 / 2) / 2 + 0) / 2)
    assert scores["pixel_accuracy"] == pytest.approx(16 * 0.75 / 18)
    # our metric ignores void, so class 2 occurs nowhere, and sums over all images
    of_record = scores_of(matrices.total())
    assert of_record["miou"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert of_record["pixel_accuracy"] == pytest.approx(0.75)


def test_all_background_under_both_protocols():
    """Of two images one quarter each is class 1, one quarter void, and one half background."""
    target = torch.zeros(224, 224).long()
    target[:112, :112], target[112:, 112:] = 1, 255
    floor = matrices_of([torch.ones(224, 224).long()] * 2, [target] * 2, 3).all_background()
    expected = {"miou": (2 / 3 + 0) / 2, "pixel_accuracy": 2 / 3, "mean_accuracy": (1 + 0) / 2}
    assert scores_of(floor.total()) == pytest.approx(expected)
    assert paper_inferred(floor) == pytest.approx({"miou": (3 / 4 + 0) / 2, "pixel_accuracy": 3 / 4})


def test_no_images_have_no_scores():
    scores = paper_inferred(ConfusionMatrices.from_dense(np.zeros((0, 4, 3), dtype=np.int64)))
    assert all(math.isnan(score) for score in scores.values())


def test_void_is_moved_to_the_background_in_a_copy():
    matrix = np.array([[1, 2], [3, 4], [5, 6]])
    assert void_as_background(matrix).tolist() == [[6, 8], [3, 4], [0, 0]]
    assert matrix.tolist() == [[1, 2], [3, 4], [5, 6]]


def test_labels_are_resized_to_224x224_by_nearest_pixel():
    """Of an image of 10x20 pixels whose left half is class 1, half is class 1 at 224x224, too."""
    labels = torch.zeros(10, 20).long()
    labels[:, :10] = 1
    resized = resize_labels(labels)
    assert resized.shape == (224, 224)
    assert resized[:, :112].all() and not resized[:, 112:].any()  # noqa: PT018


class KeepLogits(L.Callback):
    """Keeps the logits of the last validation and test by the image's index."""

    def __init__(self):
        self.logits = {"val": {}, "test": {}}

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self._keep("val", outputs)

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self._keep("test", outputs)

    def _keep(self, split, outputs):
        self.logits[split].update(zip(outputs["index"], outputs["logits"], strict=True))


def of_kind(cli, kind):
    return next(callback for callback in cli.trainer.callbacks if isinstance(callback, kind))


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A fit of one epoch and a test with the protocol: 18 and 17 images of unlike sizes, in batches of 5."""
    folder = tmp_path_factory.mktemp("protocol")
    root = write_tree(folder / "root", train=6, val=18, test=17)
    options = [
        *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
        *("--trainer.default_root_dir", str(folder), PROTOCOL, f"--trainer.callbacks+={__name__}.KeepLogits"),
    ]
    data = ["--data.root", str(root), "--data.class_names", f"[{','.join(SYNTHETIC_CLASSES)}]"]
    data += ["--data.eval_transforms", "keep_ratio", "--data.image_size", "64", "--data.batch_size", "5"]
    data += ["--data.num_workers", "0", "--figures.every_n_epochs", "0", "--previews.images", "0"]
    fit = run(["fit", "--config", "quickstart", "--trainer.max_epochs", "1", *data, *options])
    best = str(fit.best.best_model_path)
    return {"val": fit, "test": run(["test", "--ckpt_path", best, *options])}


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_callback_counts_logits_and_masks_at_224x224(split, scored):
    """As vocseg 0.1.0 did: the label map is the argmax of the logits, resized bilinearly; masks by nearest pixel."""
    cli = scored[split]
    logits, samples = of_kind(cli, KeepLogits).logits[split], cli.datamodule.datasets[split].samples
    assert list(logits) == list(range({"val": 18, "test": 17}[split]))
    assert len({scores.shape for scores in logits.values()}) > 3
    expected, groups = np.zeros((len(samples), CLASSES + 1, CLASSES), dtype=np.int64), []
    for index, sample in enumerate(samples):
        resized = torch.nn.functional.interpolate(logits[index][None], (224, 224), mode="bilinear", align_corners=False)
        mask = np.array(read_mask(sample.mask))
        rows, columns = (((np.arange(224) + 0.5) * side / 224).astype(int) for side in mask.shape)
        target = np.minimum(mask[np.ix_(rows, columns)], CLASSES)
        np.add.at(expected[index], (target, resized[0].argmax(0).numpy()), 1)
    matrices = of_kind(cli, PaperProtocol).matrices[split]
    assert matrices.counts.sum() == len(samples) * FULL
    for index in range(len(samples)):
        assert (matrices[index] == expected[index]).all(), index
    # mIoU by hand: void is background, groups of 16, classes that occur
    with_background = expected[:, :CLASSES].copy()
    with_background[:, 0] += expected[:, CLASSES]
    for first in (0, 16):
        total = with_background[first : first + 16].sum(0)
        hits, union = total.diagonal(), total.sum(0) + total.sum(1) - total.diagonal()
        groups.append((hits[union > 0] / union[union > 0]).mean())
    logged = cli.trainer.callback_metrics
    assert float(logged[f"{split}/paper_inferred/miou"]) == pytest.approx(np.mean(groups), abs=1e-6)
    accuracy = with_background.sum(0).diagonal().sum() / with_background.sum()
    assert float(logged[f"{split}/paper_inferred/pixel_accuracy"]) == pytest.approx(accuracy, abs=1e-6)


def test_the_callback_changes_no_other_score(scored):
    """The metric of record counts each image at its own size."""
    sizes = [read_mask(sample.mask).size for sample in scored["test"].datamodule.datasets["test"].samples]
    matrices = scored["test"].model.results["test"].matrices
    assert [int(matrices[index].sum()) for index in range(len(matrices))] == sizes


def test_only_the_command_line_names_the_package():
    package, names = Path(vocseg.__file__).parent, re.compile(r"(from|import) vocseg\.paper|\"paper\.")
    importing = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if "paper" not in path.parts and names.search(path.read_text(encoding="utf-8"))
    ]
    assert importing == ["cli.py"]


SCRIPT = """
import json, sys
from vocseg.cli import main

for command in json.load(open("commands.json")):
    assert main(command) == 0, command
json.dump([name for name in sys.modules if name.startswith("vocseg")], open("modules.json", "w"))
"""


def test_an_ordinary_run_neither_imports_nor_logs_anything_of_the_paper(fit_flags, voc_root, tmp_path):
    best = "lightning_logs/quickstart/version_0/checkpoints/best.ckpt"
    image = str(voc_root / "VOCdevkit/VOC2007/JPEGImages/test_0000.jpg")
    commands = [
        [*fit_flags, "--trainer.max_epochs", "1", "--figures.every_n_epochs", "1"],
        *[[command, "--ckpt_path", best] for command in ("validate", "test")],
        ["predict", "--ckpt_path", best, "--data.predict_path", image],
        ["report", "quickstart"],
    ]
    (tmp_path / "commands.json").write_text(json.dumps(commands))
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    modules = json.loads((tmp_path / "modules.json").read_text())
    assert "vocseg.task" in modules
    assert [name for name in modules if name.startswith("vocseg.paper")] == []

    folder = tmp_path / "lightning_logs" / "quickstart" / "version_0"
    tags = EventAccumulator(str(folder)).Reload().Tags()
    with (folder / "metrics.csv").open() as file:
        columns = next(csv.reader(file))
    assert {"val/miou", "val/mean_accuracy"} <= set(columns) & set(tags["scalars"])
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    texts = {
        "columns": columns,
        "tags": tags,
        "config.yaml": (folder / "config.yaml").read_text(),
        "test.json": (folder / "test.json").read_text(),
        "test.npz": np.load(folder / "test.npz").files,
        "checkpoint": [list(state), list(state["callbacks"]), list(state["state_dict"])],
        "printed": done.stdout + done.stderr,
        "files": sorted(path.name for path in folder.rglob("*")),
        "report": re.sub(r"base64,[^\"]*", "", (folder / "report" / "report.html").read_text()),
    }
    assert [name for name, text in texts.items() if "paper" in str(text).lower()] == []
