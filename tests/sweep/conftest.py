"""Sweeps of very short runs, and records written by hand."""

import numpy as np
import pytest

from vocseg.confusion import ConfusionMatrices, iou_of, scores_of
from vocseg.data.synthetic import SYNTHETIC_CLASSES
from vocseg.metrics import Result
from vocseg.records import write_record
from vocseg.run_folder import RunFolder


@pytest.fixture(scope="session")
def short(voc_root):
    """Options of a fit that takes a second."""
    return [
        *("--data.root", str(voc_root), "--data.class_names", f"[{','.join(SYNTHETIC_CLASSES)}]"),
        *("--data.image_size", "32", "--data.num_workers", "0", "--data.batch_size", "4"),
        *("--trainer.max_epochs", "2", "--trainer.limit_train_batches", "1", "--trainer.accelerator", "cpu"),
        *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
        *("--figures.every_n_epochs", "0", "--previews.images", "0"),
    ]


def result_of(right, seed, images=20):
    """A result of images whose pixels are right with probability ``right``, else labelled background."""
    targets, rng = np.random.default_rng(0), np.random.default_rng(seed + 1)
    classes = len(SYNTHETIC_CLASSES)
    dense = np.zeros((images, classes + 1, classes), dtype=np.int64)
    for matrix in dense:
        target = targets.integers(0, classes, 400)
        np.add.at(matrix, (target, np.where(rng.random(400) < right, target, 0)), 1)
    matrices = ConfusionMatrices.from_dense(dense)
    return Result(1.5, matrices=matrices, iou=iou_of(matrices.total()), **scores_of(matrices.total()))


@pytest.fixture
def create_record(tmp_path):
    """Writes a record; returns its results."""

    def create(folder, right, seed, splits=("val", "test")):
        run = RunFolder(tmp_path / "run")
        run.path.mkdir(exist_ok=True)
        run.config.write_text("trainer: {precision: 32-true}\n")
        run.metrics.write_text("epoch,step,seconds,train/loss,val/miou\n0,3,1.5,2.0,0.1\n1,6,1.5,1.0,0.2\n")
        facts = {"seed": seed, "epochs": 2, "best_epoch": 1, "minutes": 0.5, "device": "a device", "precision": "32"}
        results = {split: result_of(right, seed) for split in splits}
        write_record(folder, run, results, {}, facts, list(SYNTHETIC_CLASSES))
        return results

    return create
