import csv
import io
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console

from vocseg.callbacks import ResultTable
from vocseg.callbacks.results import result_table
from vocseg.confusion import ConfusionMatrices
from vocseg.metrics import SegmentationMetric


def result(label_of_a=1):
    """One image: 6 background pixels, one of them predicted as a; 2 pixels of a, predicted as given; 1 void; no b."""
    metric = SegmentationMetric(3)
    target = torch.tensor([[0, 0, 0], [0, 0, 0], [1, 1, 255]])
    prediction = torch.tensor([[0, 0, 0], [0, 0, 1], [label_of_a, label_of_a, 1]])
    metric.update([prediction], [target], [0])
    return metric.compute()


def test_the_table_has_a_column_for_the_all_background_predictor():
    file = io.StringIO()
    Console(file=file, width=100).print(result_table(result(), ["background", "a", "b"], "Test"))
    rows = {cells[1].strip(): cells[2:4] for line in file.getvalue().splitlines() if len(cells := line.split("|")) > 3}
    expected = {
        "background": (5 / 6, 6 / 8),
        "a": (2 / 3, 0.0),
        "b": (math.nan, math.nan),
        "mIoU": ((5 / 6 + 2 / 3) / 2, 6 / 16),
        "pixel accuracy": (7 / 8, 6 / 8),
        "mean class accuracy": ((5 / 6 + 1) / 2, 1 / 2),
    }
    for name, scores in expected.items():
        texts = ["-" if math.isnan(score) else f"{score:.4f}" for score in scores]
        assert [cell.strip() for cell in rows[name]] == texts


def test_the_test_scores_are_written_to_the_run_folder(tmp_path):
    loader = SimpleNamespace(dataset=SimpleNamespace(samples=[SimpleNamespace(image="a.jpg", mask="a.png")]))
    trainer = SimpleNamespace(
        loggers=["any"], log_dir=str(tmp_path), is_global_zero=True, test_dataloaders=loader, ckpt_path="best.ckpt"
    )
    task = SimpleNamespace(results={"test": result()}, class_names=["background", "a", "b"])
    ResultTable().on_test_end(trainer, task)
    text = (tmp_path / "test.json").read_text()
    assert "NaN" not in text  # which JSON does not have
    scores = json.loads(text)
    assert (scores["images"], scores["checkpoint"], scores["samples"]) == (
        1,
        "best.ckpt",
        [{"image": "a.jpg", "mask": "a.png", "name": "a"}],
    )
    assert scores["mean_accuracy"] == pytest.approx((5 / 6 + 1) / 2)
    assert scores["iou"] == {"background": pytest.approx(5 / 6), "a": pytest.approx(2 / 3), "b": None}
    with (tmp_path / "test_images.csv").open(newline="") as file:
        (image,) = csv.DictReader(file)
    assert image == {
        **{"path": "a.jpg", "rank": "1", "miou": "0.75", "pixel_accuracy": "0.875"},
        **{"iou/background": "0.833333", "iou/a": "0.666667", "iou/b": ""},
    }
    with np.load(tmp_path / "test.npz") as file:
        matrices = ConfusionMatrices.from_arrays(file)
    assert matrices[0].tolist() == [[5, 1, 0], [0, 2, 0], [0, 0, 0], [0, 1, 0]]


def test_a_task_without_results_prints_no_table(capsys):
    """Such as a user's own LightningModule."""
    trainer, table = SimpleNamespace(sanity_checking=False, is_global_zero=True), ResultTable()
    table.on_validation_end(trainer, SimpleNamespace())
    table.on_fit_end(trainer, SimpleNamespace())
    table.on_test_end(trainer, SimpleNamespace())
    assert capsys.readouterr().out == ""


def test_the_best_epoch_of_a_resumed_run_may_be_before_the_interruption(capsys):
    def train(table, epoch, label_of_a):
        trainer = SimpleNamespace(
            sanity_checking=False, state=SimpleNamespace(fn="fit"), current_epoch=epoch, is_global_zero=True
        )
        task = SimpleNamespace(results={"val": result(label_of_a)}, class_names=["background", "a", "b"])
        table.on_validation_end(trainer, task)
        table.on_fit_end(trainer, task)
        return capsys.readouterr().out

    before, resumed, better = ResultTable(), ResultTable(), ResultTable()
    train(before, epoch=3, label_of_a=1)
    resumed.load_state_dict(before.state_dict())
    assert train(resumed, epoch=4, label_of_a=0) == "Best epoch 4, val/miou 0.7500: before the interruption.\n"
    better.load_state_dict({"epoch": 0, "miou": 0.1})
    assert "Validation, best epoch by val/miou (5)" in train(better, epoch=4, label_of_a=1)
