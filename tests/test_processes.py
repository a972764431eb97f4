"""Two processes on this machine give the figures of one."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vocseg.callbacks.metrics_csv import read_lines

RUN = Path("lightning_logs/quickstart/version_0")
# what both processes run; the first keeps the figures of each test
SCRIPT = """
import json, os, shutil, sys
from vocseg.cli import main
for number, command in enumerate(json.load(open("commands.json"))):
    assert main(command) == 0, command
    figures = "lightning_logs/quickstart/version_0/test.json"
    if command[0] == "test" and os.environ["RANK"] == "0":
        shutil.copy(figures, command[-1] + ".json")
"""
BOTH = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
SPLITS = ["val", "test", "single"]  # 5 images, which two processes do not divide; 4; and 1, fewer than processes


@pytest.fixture(scope="module")
def tree(voc_root, tmp_path_factory):
    root = tmp_path_factory.mktemp("tree") / "root"
    shutil.copytree(voc_root, root)
    (root / "VOCdevkit/VOC2007/ImageSets/Segmentation/single.txt").write_text("test_0002\n")
    return root


@pytest.fixture(scope="module")
def run(tree, fit_flags, tmp_path_factory):
    """A fit, three tests and a prediction by two processes, started as torchrun starts them; the folder they ran in."""
    folder = tmp_path_factory.mktemp("processes")
    best = str(RUN / "checkpoints" / "best.ckpt")
    photographs = tree / "VOCdevkit/VOC2007/JPEGImages"
    weights = ["--model.loss", "CrossEntropy", "--model.loss.class_weights", "inverse_frequency"]
    commands = [
        [*fit_flags, "--data.root", str(tree), "--data.batch_size", "2", *weights, *BOTH],
        *[["test", "--ckpt_path", best, *BOTH, *QUIET, "--data.test_split", split] for split in SPLITS],
        ["predict", "--ckpt_path", best, *BOTH, *QUIET, "--data.predict_path", str(photographs / "test_000[012].jpg")],
    ]
    (folder / "commands.json").write_text(json.dumps(commands))
    (folder / "script.py").write_text(SCRIPT)
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "script.py"]
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def alone(run, tree, succeed_in, tmp_path_factory):
    """The same checkpoint, scored by one process in a folder of its own."""
    folder = shutil.copytree(run, tmp_path_factory.mktemp("alone") / "folder")
    figures = {}
    for split in SPLITS:
        succeed_in(folder, ["test", "--ckpt_path", RUN / "checkpoints/best.ckpt", *QUIET, "--data.test_split", split])
        figures[split] = json.loads((folder / RUN / "test.json").read_text())
    return figures


@pytest.mark.parametrize("split", SPLITS)
def test_figures_equal_those_of_one_process(split, run, alone):
    both = json.loads((run / f"{split}.json").read_text())
    assert both["images"] == alone[split]["images"] == {"val": 5, "test": 4, "single": 1}[split]
    for name in ("loss", "miou", "pixel_accuracy", "iou", "all_background"):
        assert both[name] == pytest.approx(alone[split][name], abs=1e-6), name


def test_the_fits_own_validation_equals_that_of_one_process(run, alone):
    lines = read_lines(run / RUN / "metrics.csv")
    best = max(lines, key=lambda line: line["val/miou"])
    assert best["val/miou"] == pytest.approx(alone["val"]["miou"], abs=1e-6)
    assert best["val/loss"] == pytest.approx(alone["val"]["loss"], abs=1e-6)
    assert [line["step"] for line in lines] == [2, 4]  # two batches of two for each of two processes


def test_classes_are_counted_once_for_all(run, tree):
    state = torch.load(run / RUN / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    counts = np.zeros(256)
    for path in (tree / "VOCdevkit/VOC2007/SegmentationClass").glob("train_*.png"):
        counts += np.bincount(np.array(Image.open(path)).ravel(), minlength=256)
    inverse = 1 / counts[: len(state["loss.class_weights"])]
    assert np.allclose(state["loss.class_weights"], inverse / inverse.sum(), rtol=1e-5)


def test_files_are_written_once_and_none_is_lost(run):
    assert sorted(path.name for path in (run / "lightning_logs").glob("*/*")) == ["version_0"]
    assert len(list((run / RUN).glob("events*"))) == 5  # of the fit, three tests and the prediction
    assert sorted(path.name for path in (run / RUN / "test_masks").iterdir()) == ["test_0002.png"]
    masks = [path.name for path in (run / RUN / "predictions").glob("*.png")]
    assert sorted(masks) == ["test_0000.png", "test_0001.png", "test_0002.png"]
    assert (run / RUN / "predictions" / "index.html").read_text().count("<figure>") == 3


def test_the_command_starts_its_processes_itself(fit_flags, tmp_path):
    words = [*fit_flags, *BOTH, "--trainer.max_epochs", "1", "--data.batch_size", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "vocseg", *words], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Run folder") == 1
    assert "sync_dist" not in done.stderr
    assert (tmp_path / RUN / "checkpoints" / "best.ckpt").is_file()
