"""Two processes on this machine compute the scores of one."""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vocseg.confusion import ConfusionMatrices, scores_of
from vocseg.metrics import SegmentationMetric
from vocseg.run_folder import RunFolder, read_lines

RUN = Path("lightning_logs/quickstart/version_0")
# both processes run this; rank 0 keeps the scores of each test
SCRIPT = """
import json, os, shutil, sys
from vocseg.cli import main
for number, command in enumerate(json.load(open("commands.json"))):
    assert main(command) == 0, command
    scores = "lightning_logs/quickstart/version_0/test.json"
    if command[0] == "test" and os.environ["RANK"] == "0":
        shutil.copy(scores, command[-1] + ".json")
"""
# both processes run this: the metric, and torchmetrics' own on pixels, each updated with the images of its own rank
METRIC_SCRIPT = """
import json, os
import numpy as np
import torch
from torch import distributed
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex
from vocseg.metrics import SegmentationMetric

distributed.init_process_group("gloo")
rank = distributed.get_rank()
data = np.load("images.npz")
metric = SegmentationMetric(5)
common = {"num_classes": 5, "ignore_index": 255}
ordinary = {
    "miou": MulticlassJaccardIndex(average="macro", **common),
    "iou": MulticlassJaccardIndex(average="none", zero_division=float("nan"), **common),
    "pixel_accuracy": MulticlassAccuracy(average="micro", **common),
}
for name, shares in json.load(open("shares.json")).items():
    for index in shares[rank]:
        prediction, target = (torch.from_numpy(data[f"{kind}_{index}"]) for kind in ("prediction", "target"))
        metric.update([prediction], [target], [index])
        metric.update_loss(torch.tensor(float(index)), torch.tensor(2.0))
        for other in ordinary.values():
            other.update(prediction[None], target[None])
    result = metric.compute()
    scores = {score: getattr(result, score) for score in ("loss", "miou", "pixel_accuracy", "mean_accuracy", "iou")}
    pixels = {score: other.compute().tolist() for score, other in ordinary.items()}
    json.dump({"scores": scores, "pixels": pixels}, open(f"{name}_{rank}.json", "w"))
    np.savez(f"{name}_{rank}.npz", **result.matrices.to_arrays())
    for one in (metric, *ordinary.values()):
        one.reset()
distributed.destroy_process_group()
"""
# both processes run this: a plain loader of 5 images, of which Lightning's sampler gives one twice
PLAIN_SCRIPT = """
import json, os
import lightning as L
import torch
from torch.utils.data import DataLoader
from vocseg import SegmentationTask, SkipDecoder, StridedEncoder

def scores(devices):
    L.seed_everything(0)
    data = [(torch.randn(3, 32, 32), torch.randint(0, 3, (32, 32))) for _ in range(5)]
    task = SegmentationTask(StridedEncoder(widths=(4, 8)), SkipDecoder, ["a", "b", "c"])
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    strategy = "ddp" if devices > 1 else "auto"
    trainer = L.Trainer(accelerator="cpu", devices=devices, strategy=strategy, **quiet)
    trainer.test(task, DataLoader(data, batch_size=2), verbose=False)
    result = task.results["test"]
    return [len(result.matrices), int(result.matrices.total().sum()), result.miou, result.loss]

if __name__ == "__main__":
    found = scores(2)
    if os.environ["RANK"] == "0":
        json.dump(found, open("scores.json", "w"))
"""
SHARES = {
    "unequal": [[6, 0, 2, 5], [3, 1, 4]],
    "none": [[], [0, 1, 2, 3, 4, 5, 6]],
    "padded": [[0, 2, 4, 6], [1, 3, 5, 0]],  # as DistributedSampler pads
}
BOTH = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
SCORES = ["--scores", "[boundary, calibration]"]
SPLITS = ["val", "test", "single"]  # 5 images, which two processes do not divide; 4; and 1, fewer than processes


@pytest.fixture(scope="module")
def metric_run(tmp_path_factory):
    """Seven images of different sizes, scored by two processes that have different shares; the folder."""
    folder = tmp_path_factory.mktemp("metric")
    rng = np.random.default_rng(0)
    images = {}
    for index in range(7):
        size = tuple(rng.integers(1, 20, 2))
        images[f"target_{index}"] = rng.choice([0, 1, 3, 255], size)
        images[f"prediction_{index}"] = rng.integers(0, 4, size)
    np.savez(folder / "images.npz", **images)
    (folder / "shares.json").write_text(json.dumps(SHARES))
    run_two(folder, METRIC_SCRIPT)
    return folder


def run_two(folder, script):
    """Runs a script in two processes, started as torchrun starts them."""
    (folder / "script.py").write_text(script)
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "script.py"]
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "stderr.txt").write_text(done.stderr)


def test_a_plain_loader_counts_no_image_twice(tmp_path):
    run_two(tmp_path, PLAIN_SCRIPT)
    two = json.loads((tmp_path / "scores.json").read_text())
    one = runpy.run_path(str(tmp_path / "script.py"))["scores"](1)
    assert one[:2] == two[:2] == [5, 5 * 32 * 32]
    assert two[2:] == pytest.approx(one[2:], abs=1e-6)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("share", SHARES)
def test_the_metric_of_two_processes_equals_that_of_one(share, rank, metric_run):
    metric = SegmentationMetric(5)
    with np.load(metric_run / "images.npz") as images:
        for index in range(7):
            prediction, target = (torch.from_numpy(images[f"{kind}_{index}"]) for kind in ("prediction", "target"))
            metric.update([prediction], [target], [index])
    expected = metric.compute()
    found = json.loads((metric_run / f"{share}_{rank}.json").read_text())
    for name in ("miou", "pixel_accuracy", "mean_accuracy", "iou"):
        assert found["scores"][name] == pytest.approx(getattr(expected, name), abs=1e-6, nan_ok=True), name
    if share != "padded":  # there the pixels and the loss of image 0 are added twice
        for name, score in found["pixels"].items():
            assert found["scores"][name] == pytest.approx(score, abs=1e-6, nan_ok=True), name
        assert found["scores"]["loss"] == sum(range(7)) / 14
    with np.load(metric_run / f"{share}_{rank}.npz") as file:
        matrices = ConfusionMatrices.from_arrays(file)
    assert len(matrices) == 7
    assert all(np.array_equal(one, other) for one, other in zip(matrices, expected.matrices, strict=True))


@pytest.fixture(scope="module")
def tree(voc_root, tmp_path_factory):
    root = tmp_path_factory.mktemp("tree") / "root"
    shutil.copytree(voc_root, root)
    (root / "VOCdevkit/VOC2007/ImageSets/Segmentation/single.txt").write_text("test_0002\n")
    return root


@pytest.fixture(scope="module")
def run(tree, fit_flags, tmp_path_factory):
    """A fit, three tests and a prediction by two processes; the folder they ran in."""
    folder = tmp_path_factory.mktemp("processes")
    best = str(RUN / "checkpoints" / "best.ckpt")
    images = tree / "VOCdevkit/VOC2007/JPEGImages"
    weights = ["--model.loss", "CrossEntropy", "--model.loss.class_weights", "inverse_frequency"]
    commands = [
        [*fit_flags, "--data.root", str(tree), "--data.batch_size", "2", *weights, *BOTH],
        *[["test", "--ckpt_path", best, *SCORES, *BOTH, *QUIET, "--data.test_split", split] for split in SPLITS],
        ["predict", "--ckpt_path", best, *BOTH, *QUIET, "--data.predict_path", str(images / "test_000[012].jpg")],
    ]
    (folder / "commands.json").write_text(json.dumps(commands))
    run_two(folder, SCRIPT)
    return folder


@pytest.fixture(scope="module")
def one_process(run, tree, succeed_in, tmp_path_factory):
    """The same checkpoint, scored by one process in another folder."""
    folder = shutil.copytree(run, tmp_path_factory.mktemp("one_process") / "folder")
    scores = {}
    for split in SPLITS:
        words = ["--ckpt_path", RUN / "checkpoints/best.ckpt", *SCORES, *QUIET, "--data.test_split", split]
        succeed_in(folder, ["test", *words])
        scores[split] = json.loads((folder / RUN / "test.json").read_text())
    return scores


@pytest.mark.parametrize("split", SPLITS)
def test_test_scores_equal_those_of_one_process(split, run, one_process):
    both = json.loads((run / f"{split}.json").read_text())
    assert both["images"] == one_process[split]["images"] == {"val": 5, "test": 4, "single": 1}[split]
    for name in ("loss", "miou", "pixel_accuracy", "mean_accuracy", "iou", "all_background"):
        assert both[name] == pytest.approx(one_process[split][name], abs=1e-6), name
    for score in ("boundary", "calibration"):
        for name, value in one_process[split][score].items():
            assert both[score][name] == pytest.approx(value, abs=1e-6), name


def test_lightning_warns_of_no_number_that_is_not_reduced(run):
    """In the fit, tests and prediction; the tests are logged at the step of the checkpoint."""
    assert "sync_dist" not in (run / "stderr.txt").read_text()


def test_the_test_files_have_the_matrices_of_all_images(run):
    """Of the last test, of the split with a single image."""
    folder = RunFolder(run / RUN)
    scores = json.loads(folder.scores("test").read_text())
    with np.load(folder.matrices("test")) as file:
        matrices = ConfusionMatrices.from_arrays(file)
    assert [Path(sample["image"]).name for sample in scores["samples"]] == ["test_0002.jpg"]
    assert len(matrices) == 1
    assert scores_of(matrices.total())["miou"] == pytest.approx(scores["miou"], abs=1e-6)


def test_the_validation_during_the_fit_equals_that_of_one_process(run, one_process):
    lines = read_lines(run / RUN / "metrics.csv")
    best = max(lines, key=lambda line: line["val/miou"])
    assert best["val/miou"] == pytest.approx(one_process["val"]["miou"], abs=1e-6)
    assert best["val/loss"] == pytest.approx(one_process["val"]["loss"], abs=1e-6)
    assert [line["step"] for line in lines] == [2, 4]  # two batches of two images in each of two processes


def test_class_weights_are_counted_once_for_all_processes(run, tree):
    state = torch.load(run / RUN / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    counts = np.zeros(256)
    for path in (tree / "VOCdevkit/VOC2007/SegmentationClass").glob("train_*.png"):
        counts += np.bincount(np.array(Image.open(path)).ravel(), minlength=256)
    inverse = 1 / counts[: len(state["loss.class_weights"])]
    assert np.allclose(state["loss.class_weights"], inverse / inverse.sum(), rtol=1e-5)


def test_files_are_written_once_and_none_is_missing(run):
    assert sorted(path.name for path in (run / "lightning_logs").glob("*/*")) == ["version_0"]
    assert len(list((run / RUN).glob("events*"))) == 5  # the fit, three tests and the prediction
    assert sorted(path.name for path in (run / RUN / "test_masks").iterdir()) == ["test_0002.png"]
    masks = [path.name for path in (run / RUN / "predictions").glob("*.png")]
    assert sorted(masks) == ["test_0000.png", "test_0001.png", "test_0002.png"]
    assert (run / RUN / "predictions" / "index.html").read_text().count('<li class="card">') == 3


def test_the_command_starts_its_own_processes(fit_flags, tmp_path):
    words = [*fit_flags, *BOTH, "--trainer.max_epochs", "1", "--data.batch_size", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "vocseg", *words], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Run folder") == 1
    assert "sync_dist" not in done.stderr
    assert (tmp_path / RUN / "checkpoints" / "best.ckpt").is_file()
