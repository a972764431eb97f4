"""Records written by hand."""

import numpy as np
import pytest

from vocseg.confusion import ConfusionMatrices, iou_of, scores_of
from vocseg.data.synthetic import SYNTHETIC_CLASSES
from vocseg.metrics import Result
from vocseg.records import write_record
from vocseg.run_folder import RunFolder
from vocseg.saving import write_mask

FACTS = {"seed": 0, "epochs": 2, "best_epoch": 1, "minutes": 0.5, "device": "a device", "precision": "32-true"}
CONFIG = "model: {optimizer: {init_args: {lr: 0.5, weight_decay: 0}}, decoder: {init_args: {activation: relu}}}\n"
METRICS = "epoch,step,seconds,train/loss,val/loss,val/miou\n0,3,1.5,2.0,2.1,0.1\n1,6,1.5,1.0,1.5,0.2\n"


def draw_matrices(right, classes, images=20, pixels=1200):
    """Matrices of images whose pixels are right with probability ``right``, else labelled background."""
    rng = np.random.default_rng(0)
    dense = np.zeros((images, classes + 1, classes), dtype=np.int64)
    for matrix in dense:
        target = rng.integers(0, classes, pixels)
        np.add.at(matrix, (target, np.where(rng.random(pixels) < right, target, 0)), 1)
    return ConfusionMatrices.from_dense(dense)


@pytest.fixture
def create_record(tmp_path):
    """Writes a record of 20 images; returns its result, which is that of val and of test."""

    def create(
        folder, right, class_names=SYNTHETIC_CLASSES, images=("test_0000", "test_0002"), config=CONFIG, metrics=METRICS
    ):
        run_folder = RunFolder(tmp_path / "run")
        run_folder.path.mkdir(exist_ok=True)
        run_folder.config.write_text(config)
        run_folder.metrics.write_text(metrics)
        for name in images:
            write_mask(run_folder.test_masks / f"{name}.png", np.full((30, 40), 3))
        masks = [run_folder.test_masks / f"{name}.png" for name in images]
        matrices = draw_matrices(right, len(class_names))
        total = matrices.total()
        result = Result(1.5, matrices=matrices, iou=iou_of(total), **scores_of(total))
        resized = draw_matrices(right, len(class_names), pixels=224)
        both = {"val": result, "test": result}
        write_record(folder, run_folder, both, dict.fromkeys(both, resized), FACTS, list(class_names), masks)
        return result, resized

    return create
